"""Two networks side by side where they part: what each reads, does and holds there."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.report.checks import need


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

    def __post_init__(self) -> None:
        place = f"{self.first} where it parts from {self.second}"
        for side in self.sides:
            for number in (number for row in side.rows for number in row):
                need(_is_number(number), f"{place} holds {number!r}, which is no number")
            row, column = side.at
            inside = row < len(side.rows) and column < len(side.rows[row])
            need(
                inside or not side.rows, f"{place} parts at {side.at}, outside of the numbers shown"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
