"""Sections of sentences, a drawing and tables: one function each, and the page shows it.

A new chart is a function here under ``@section``: from the results to a :class:`Section`, or to
None where they have nothing to draw. The page has the sections in the order in which they are here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reparam.report._markup import element, text, typeset
from reparam.report.differences import DifferenceRecord, drawing, place
from reparam.report.numbers import count, error
from reparam.report.results import Results

__all__ = ["Cell", "Column", "Line", "Section", "Table", "sections"]


@dataclass(frozen=True)
class Cell:
    """What a cell shows, what it is sorted by, and ``"ok"`` or ``"bad"``."""

    shown: str
    sort: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column, and whether it holds numbers."""

    title: str
    numbers: bool = True


@dataclass(frozen=True)
class Line:
    """A row of a table: its head, with the role of a model and a remark, and its cells."""

    head: str
    cells: Sequence[Cell]
    role: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table with one column more than its lines have cells, that of their heads."""

    name: str
    caption: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    sortable: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page; `chart` is markup."""

    anchor: str
    title: str
    remarks: Sequence[str] = ()
    chart: str = ""
    note: str = ""
    tables: Sequence[Table] = ()


_Maker = Callable[[Results], Section | None]
_MAKERS: list[_Maker] = []


def section(maker: _Maker) -> _Maker:
    """Put what a function makes of the results on the page."""
    _MAKERS.append(maker)
    return maker


def sections(results: Results) -> list[Section]:
    """All sections that there is something to show in."""
    return [made for made in (maker(results) for maker in _MAKERS) if made is not None]


@section
def _verification(results: Results) -> Section | None:
    if not results.checks:
        return None
    columns = [
        Column("Check", numbers=False),
        Column("Compared", numbers=False),
        *map(Column, ("Max. absolute", "Max. relative", "Allowed", "Equal predictions")),
        Column("Result", numbers=False),
    ]
    lines = [
        Line(
            check.what,
            [
                Cell(f"{check.candidate} against {check.reference}"),
                Cell(error(check.max_abs), repr(check.max_abs)),
                Cell(error(check.max_rel), repr(check.max_rel)),
                Cell(check.tolerance),
                Cell("" if check.agree is None else f"{check.agree:,} of {check.total:,}"),
                Cell("equal", verdict="ok") if check.ok else Cell("different", verdict="bad"),
            ],
        )
        for check in results.checks
    ]
    caption = "Two models on the same inputs: the largest difference, and what was allowed"
    table = Table("Checks", caption, columns, lines, sortable=True)
    return Section("verification", "Verification", tables=[table])


@section
def _models(results: Results) -> Section | None:
    if not results.models:
        return None
    titles = ("Convolutions", "Batch norms", "Parameters", "Multiply-adds")
    lines = [
        Line(
            model.label,
            [
                Cell(count(number))
                for number in (
                    model.convolutions, model.norms, model.parameters, model.multiply_adds
                )
            ],
            model.role,
            model.note,
        )
        for model in results.models
    ]  # fmt: skip
    table = Table(
        "The models",
        "What was compared; multiply-adds are for one input",
        [Column("Model", numbers=False), *map(Column, titles)],
        lines,
    )
    return Section("models", "The models", tables=[table])


_OUTCOMES = {"equal": "ok", "different": "bad"}


@section
def _differences(results: Results) -> Section | None:
    if not results.differences:
        return None
    columns = [
        Column("Networks", numbers=False),
        Column("Result", numbers=False),
        *map(Column, ("Operations matched", "Numbers compared", "Worst", "Effect")),
        Column("Inputs", numbers=False),
    ]
    lines = [
        Line(
            f"{record.first} and {record.second}",
            [
                Cell(record.outcome, verdict=_OUTCOMES.get(record.outcome, "")),
                Cell(f"{record.proven:.1%}", repr(record.proven)),
                Cell(count(record.numbers), str(record.numbers)),
                Cell(f"{record.worst:.0%}" if record.outcome == "equal" else "–"),
                Cell("–" if record.effect is None else error(record.effect)),
                Cell(", ".join("×".join(map(str, shape)) for shape in record.shapes)),
            ],
        )
        for record in results.differences
    ]
    caption = (
        "The worst number as a share of what rounding of stored weights explains; the effect of "
        "the part that differs relative to the largest output"
    )
    return Section(
        "difference",
        "Where the networks part" if any(each.what for each in results.differences) else "Proof",
        chart="".join(map(_parted, results.differences)),
        tables=[Table("Networks compared", caption, columns, lines)],
    )


def _parted(record: DifferenceRecord) -> str:
    """What is said above the drawing of one pair, and the drawing."""
    if not record.what:
        return ""
    told = [element("p", text(typeset(record.parts[:1].upper() + record.parts[1:])))]
    if where := place(record):
        values = " against ".join(side.value for side in record.sides if side.value)
        told = [element("p", text(f"{record.what.capitalize()} of {where}: {values}"))]
    return element("div", *told, drawing(record), class_="chart")
