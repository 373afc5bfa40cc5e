"""Tables: described once, for the page and for the spreadsheet that it hands out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_HEADER = ("section", "group", "subject", "quantity", "value", "unit")


@dataclass(frozen=True)
class Cell:
    """A value that is good or bad (`verdict` is ``"ok"`` or ``"bad"``), or needs a remark."""

    value: Any
    verdict: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        show: How a number is written; None for a column of words.
        unit: What the numbers count.
        parts: Where a cell holds several numbers, what each is; the first is what it is sorted by.
        names: Whether its words belong to the name of the line.
        kind: ``"code"`` for names in a net, ``"tag-of"`` for letters of groups.
    """

    title: str
    show: Callable[[Any], str] | None = None
    unit: str = ""
    parts: tuple[str, ...] = ()
    names: bool = False
    kind: str = ""

    def numbers(self, value: Any) -> list[tuple[str, Any]]:
        """What there is to calculate with, each number with what it is."""
        if value is None:
            return []
        if not self.parts:
            return [(self.title, value)]
        return [(f"{self.title}, {part}", v) for part, v in zip(self.parts, value, strict=True)]


@dataclass(frozen=True)
class Line:
    """A row of a table: its head, with the role of a model and a remark, and its values."""

    head: str
    cells: Sequence[Any]
    role: str = ""
    remark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with one column more than its lines have cells, that of their heads."""

    name: str
    caption: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    sortable: bool = True

    def cells(self, line: Line) -> Iterator[tuple[Column, Cell, str, str]]:
        """Of each value the column, the value, how it is shown, and what it is sorted by."""
        for column, value in zip(self.columns[1:], line.cells, strict=True):
            cell = value if isinstance(value, Cell) else Cell(value)
            if cell.value is None:
                yield column, cell, "–", ""
            elif column.show is None:
                yield column, cell, str(cell.value), ""
            else:
                yield column, cell, column.show(cell.value), str(column.numbers(cell.value)[0][1])

    def numbers(self) -> Iterator[tuple[str, str, Any, str]]:
        """Of each value what it is of, what it is, the value itself and its unit."""
        for line in self.lines:
            told = [*self.cells(line)]
            subject = ", ".join([line.head, *(text for column, _, text, _ in told if column.names)])
            for column, cell, _, _ in told:
                for what, value in () if column.names else column.numbers(cell.value):
                    yield subject, what, value, column.unit


def to_csv(tables: Iterable[tuple[str, Table]]) -> str:
    """One line for each value: section, table, what it is of, what it is, the value, its unit."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    for section, table in tables:
        for row in table.numbers():
            writer.writerow(map(_plain, (section, table.name, *row)))
    return buffer.getvalue()


def _plain(value: object) -> object:
    """The value; a text that a spreadsheet would take for a formula is marked as text."""
    return (
        f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
    )
