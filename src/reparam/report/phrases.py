"""The pieces that headlines and key figures are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Figure", "Phrase", "points", "sentence", "several_points", "span"]


@dataclass(frozen=True)
class Phrase:
    """A piece of a sentence; a strong one carries a number."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Figure:
    """A key number with what it counts."""

    value: str
    label: str
    detail: str = ""


def sentence(text: str) -> list[Phrase]:
    """A sentence whose numbers stand between asterisks.

    >>> sentence("In eight bits *79.2 %* are right.")[1]
    Phrase(text='79.2 %', strong=True)
    """
    return [Phrase(part, strong=i % 2 == 1) for i, part in enumerate(text.split("*")) if part]


def points(lost: float) -> str:
    """A difference of percentages: what was lost, or gained where it is below zero.

    >>> points(8.204), points(-0.05), points(0.0)
    ('8.20 points lost', '0.05 points gained', 'nothing lost')
    """
    if round(lost, 2) == 0:
        return "nothing lost"
    return f"{abs(lost):.2f} points {'lost' if lost > 0 else 'gained'}"


def several_points(lost: list[float]) -> str:
    """From the least that several nets lost to the most; numbers stand between asterisks.

    >>> several_points([0.2, 0.05]), several_points([1.0, 1.0])
    ('*0.05* to *0.20 points* lost', '*1.00 points* lost')
    >>> several_points([-0.1, 0.2]), several_points([0.0])
    ('*0.10 points* gained to *0.20 points* lost', 'nothing lost')
    """
    low, high = points(min(lost)), points(max(lost))
    if low == high:
        return _marked(low)
    if low.endswith(" points lost"):
        return f"*{low.partition(' ')[0]}* to {_marked(high)}"
    return f"{_marked(low)} to {_marked(high)}"


def _marked(told: str) -> str:
    number, unit, rest = told.partition(" points ")
    return f"*{number} points* {rest}" if unit else told


def span(values: Sequence[float]) -> str:
    """The least and the largest of some numbers, once where they read the same.

    >>> span([0.1, 0.25, 0.2]), span([0.5])
    ('0.10 to 0.25', '0.50')
    """
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
