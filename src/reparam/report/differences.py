"""Two networks side by side where they part: what each reads, does and holds there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reparam.errors import InputError

__all__ = [
    "DifferenceRecord",
    "SideRecord",
    "check_differences",
]


@dataclass(frozen=True)
class SideRecord:
    """One network where it parts from another.

    `reads` is what both compute alike; `operators` are names and kinds, first to last; `computes`
    is what they are together. `rows` are numbers around the one that parts, which stands at `at`;
    `starts` is which row and column they begin with, `plane` which output and input channel. All
    numbers are texts, as what is not finite is no number of JSON.
    """

    reads: tuple[str, ...]
    operators: tuple[tuple[str, str], ...]
    computes: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    at: tuple[int, int] = (0, 0)
    starts: tuple[int, int] = (0, 0)
    plane: tuple[int, ...] = ()
    value: str = ""


@dataclass(frozen=True)
class DifferenceRecord:
    """What :func:`reparam.diff` found of two networks; `sides` where they part, if they do.

    `worst` is the largest difference of two numbers as a share of what rounding explains, `proven`
    the share of operations that match, `effect` the change of an output relative to the largest.
    """

    first: str
    second: str
    outcome: str
    numbers: int
    worst: float
    proven: float
    shapes: tuple[tuple[int, ...], ...] = ()
    what: str = ""
    parts: str = ""
    index: tuple[int, ...] = ()
    effect: float | None = None
    sides: tuple[SideRecord, ...] = ()


def check_differences(records: Sequence[DifferenceRecord], where: str) -> None:
    """Raise for what cannot be drawn, as a file may hold it.

    Raises:
        InputError: Numbers that are none, or a place outside of them.

    """
    for record in records:
        for side in record.sides:
            place = f"{where}: {record.first} where it parts from {record.second}"
            for number in (number for row in side.rows for number in row):
                try:
                    float(number)
                except ValueError:
                    raise InputError(f"{place} holds {number!r}, which is no number") from None
            if side.rows and (
                not 0 <= side.at[0] < len(side.rows) or not 0 <= side.at[1] < len(side.rows[0])
            ):
                raise InputError(f"{place} parts at {side.at}, outside of the numbers shown")
