"""Two networks side by side where they part: what each reads, does and holds there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reparam.errors import InputError
from reparam.report._markup import element, text, typeset

__all__ = [
    "DifferenceRecord",
    "SideRecord",
    "check_differences",
    "difference_sentence",
    "drawing",
    "place",
]

_MOST = 14
"""Operations of one side that are drawn; the first and the last of more."""
_TONES = ("train", "deploy")


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


def difference_sentence(records: Sequence[DifferenceRecord]) -> str:
    """The headline of a page about these; numbers between asterisks."""
    if len(records) > 1:
        equal = sum(record.outcome == "equal" for record in records)
        return f"*{equal}* of *{len(records)}* pairs of networks are proven equal."
    (record,) = records
    match record.outcome:
        case "equal":
            return f"Proven equal: all operations match, and all *{record.numbers:,}* numbers."
        case "different":
            return f"Different: they part at *{_where(record)}*."
        case _:
            return f"Not shown to be equal: *{record.proven:.0%}* of the operations match."


def _where(record: DifferenceRecord) -> str:
    """The first operation of the part that differs, by its name where it has one."""
    named = (name or kind for side in record.sides for name, kind in side.operators)
    return next(named, "the first operation")


def place(record: DifferenceRecord) -> str:
    """Which number it is, in the words of its kind."""
    index, numbers = record.index, [str(k) for k in record.index]
    if record.what == "weight" and len(index) > 1:
        told = f"output channel {index[0]}, input {index[1]}"
        return f"{told}, tap ({', '.join(numbers[2:])})" if len(index) > 2 else told
    if record.what in ("weight", "bias") and index:
        told = f"channel {index[0]}"
        return f"{told} at ({', '.join(numbers[1:])})" if len(index) > 1 else told
    return f"at ({', '.join(numbers)})" if index else ""


def drawing(record: DifferenceRecord) -> str:
    """Both sides beside one another, from what they read to the numbers that part."""
    names = (record.first, record.second)
    figures = [
        _side(side, name, tone)
        for side, name, tone in zip(record.sides, names, _TONES, strict=False)
    ]
    return element("div", *figures, class_="parting") if figures else ""


def _side(side: SideRecord, name: str, tone: str) -> str:
    steps = [_step(words, "", "plain") for words in side.reads]
    operators = side.operators
    left_out = len(operators) - _MOST
    if left_out > 0:
        operators = operators[: _MOST // 2]
    steps += [_step(kind or "operation", where, "folds") for where, kind in operators]
    if left_out > 0:
        steps.append(_step(f"{left_out} more operations", "", "stays"))
        steps += [_step(kind or "operation", where, "folds")
                  for where, kind in side.operators[-(_MOST // 2) :]]  # fmt: skip
    head = element("figcaption", element("span", class_=f"dot role-{tone}"), text(name))
    together = element("p", text(typeset("; ".join(side.computes))), class_="together")
    return element(
        "figure",
        head,
        element("ol", *steps, class_="path"),
        together if side.computes else "",
        _kernel(side),
        class_=f"role-{tone}",
    )


def _step(words: str, where: str, kind: str) -> str:
    lines = [element("span", text(typeset(words)), class_="layer")]
    if where:
        lines.append(element("code", text(where)))
    return element("li", element("div", *lines, class_=f"operation {kind}"))


def _kernel(side: SideRecord) -> str:
    """The numbers as squares of their size: filled where positive, open where negative."""
    if not side.rows:
        return ""
    sizes = [[_size(number) for number in row] for row in side.rows]
    largest = max(max(row) for row in sizes) or 1.0
    head = [element("td"), *(_head("col", side.starts[1] + k) for k in range(len(side.rows[0])))]
    lines = [element("tr", *head)]
    for row, numbers in enumerate(side.rows):
        cells = [_head("row", side.starts[0] + row)]
        for column, number in enumerate(numbers):
            share = (sizes[row][column] / largest) ** 0.5
            sign = "open" if number.startswith("-") else "filled"
            mark = element("i", class_=f"weight {sign}", style=f"--size:{share:.3f}")
            here = "at" if (row, column) == side.at else None
            shown = element("span", text(number))
            cells.append(element("td", mark, shown, class_=here))
        lines.append(element("tr", *cells))
    caption = element("caption", text(_titled(side)))
    table = element("table", caption, *lines, class_="kernel")
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Numbers")


def _head(scope: str, number: int) -> str:
    return element("th", text(number), scope=scope)


def _titled(side: SideRecord) -> str:
    match side.plane:
        case (out, into, *_):
            return f"Kernel from input {into} to channel {out}"
        case (out,):
            return f"Kernel of channel {out}: inputs down, taps across"
        case _:
            rows = len(side.rows) > 1
            return "Numbers by row and column" if rows else "Numbers of the channels"


def _size(number: str) -> float:
    value = abs(float(number))
    return value if value < float("inf") else 0.0
