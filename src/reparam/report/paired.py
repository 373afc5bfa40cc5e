"""Two timings from the same interleaved rounds, compared round by round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam._support.statistics import quartiles
from reparam.report.numbers import ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAME_SPEED = 0.03
"""Ratios nearer to one than this are called equal."""

_CLEAR = 0.75
"""A winner is named where it won this share of the rounds."""

_ENOUGH = 3
"""Fewer rounds name no winner."""


@dataclass(frozen=True)
class Paired:
    """How many times faster one is than the other: below one, it is slower.

    What slows the machine down for a while slows both in the same rounds, so the ratios of the
    rounds say more than the two medians.

    Attributes:
        low: First quartile of the ratios.
        factor: Their median.
        high: Third quartile.
        won: Share of the rounds in which the one that the median favours was the faster one.
        rounds: Number of rounds.
    """

    low: float
    factor: float
    high: float
    won: float
    rounds: int

    @property
    def same(self) -> bool:
        """Whether the two are equally fast for all that it matters."""
        return abs(self.factor - 1) <= _SAME_SPEED

    @property
    def clear(self) -> bool:
        """Whether a winner may be named."""
        return not self.same and self.won >= _CLEAR and self.rounds >= _ENOUGH

    @property
    def wins(self) -> bool:
        """Whether the one in question is clearly the faster one."""
        return self.clear and self.factor > 1

    @property
    def loses(self) -> bool:
        """Whether it is clearly the slower one."""
        return self.clear and self.factor < 1

    def __str__(self) -> str:
        if self.same:
            return "same speed"
        if not self.clear:
            return "undecided"
        return f"{ratio(self.factor)} faster" if self.wins else f"{ratio(1 / self.factor)} slower"


def paired(other: Sequence[float], mine: Sequence[float], *, of_medians: bool = False) -> Paired:
    """Compare the times of two, one entry a round; with `of_medians` the factor is theirs.

    >>> print(paired([2.0, 2.2, 1.9], [1.0, 1.1, 1.0]))
    2.00× faster
    >>> print(paired([1.0, 3.0], [2.0, 1.0]))
    undecided
    """
    ratios = [theirs / own for theirs, own in zip(other, mine, strict=False)]
    middle = quartiles(ratios)
    factor = quartiles(other).median / quartiles(mine).median if of_medians else middle.median
    won = sum((each > 1) == (factor > 1) for each in ratios) / len(ratios)
    return Paired(middle.q1, factor, middle.q3, won, len(ratios))
