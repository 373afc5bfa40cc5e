"""What the page shows of a plan, and of two networks that were compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from reparam.report.numbers import count, error, typeset
from reparam.report.sections import Part, section
from reparam.report.tables import Cell, Column, Line, Table

if TYPE_CHECKING:
    from reparam.report.differences import SideRecord
    from reparam.report.results import PlanRecord, Results

_MOST_ROWS = 20
"""Of the plan's tables; where there are more, the drawing stands for them until they unfold."""


@section("plan", "The plan")
def _plan(results: Results) -> Iterable[Part]:
    if plan := results.plan:
        long = len(plan.regions) + len(plan.refusals) > _MOST_ROWS and plan.column
        yield Part(plan, tables=dict(_plan_tables(plan)), facts={"long": long})


def _plan_tables(plan: PlanRecord) -> Iterator[tuple[str, Table]]:
    titles = ("Layers", "Stored numbers", "Multiply-adds")
    parts = ("before", "after")
    columns = [Column("Where", kind="code"), Column("What"), Column("Becomes")]
    columns += [Column(title, _fewer, "count", parts) for title in titles]
    regions = [
        Line(
            region.where,
            [
                typeset(region.what),
                typeset(region.into),
                (region.before.layers, region.after.layers),
                (region.before.stored, region.after.stored),
                (round(region.before.multiply_adds), round(region.after.multiply_adds)),
            ],
        )
        for region in plan.regions
    ]
    caption = "Regions that fold, before → after; multiply-adds are for one position of the input"
    if regions:
        yield "regions", Table("Regions that fold", caption, columns, regions)
    left = [Line(each.where, [each.what, each.why]) for each in plan.refusals]
    columns = [Column("Where", kind="code"), Column("What", names=True), Column("Why")]
    caption = "Left as it is, with the reason"
    if left:
        yield "refusals", Table("Left as it is", caption, columns, left)


def _fewer(pair: tuple[int, int]) -> str:
    return f"{count(pair[0])} → {count(pair[1])}"


@section("difference", "Proof")
def _difference(results: Results) -> Iterable[Part]:
    if not results.differences:
        return
    columns = [
        Column("Networks"), Column("Result"),
        Column("Operations matched", "{:.1%}".format, "share"),
        Column("Numbers compared", count, "count"), Column("Worst", "{:.0%}".format, "share"),
        Column("Effect", error, "share"), Column("Inputs"),
    ]  # fmt: skip
    verdicts = {"equal": "ok", "different": "bad"}
    lines = [
        Line(
            f"{record.first} and {record.second}",
            [
                Cell(record.outcome, verdicts.get(record.outcome, "")),
                record.proven,
                record.numbers,
                record.worst if record.outcome == "equal" else None,
                record.effect,
                ", ".join("×".join(map(str, shape)) for shape in record.shapes),
            ],
        )
        for record in results.differences
    ]
    caption = (
        "The worst number as a share of what rounding of stored weights explains; the effect of "
        "the part that differs relative to the largest output"
    )
    table = Table("Networks compared", caption, columns, lines, sortable=False)
    yield Part(results.differences, tables={"compared": table})


def weight_sizes(side: SideRecord) -> list[list[tuple[str, float]]]:
    """The numbers of a region, each with the side of a square that is as large beside others."""
    sizes = [[abs(float(number)) for number in row] for row in side.rows]
    finite = [[size if size < float("inf") else 0.0 for size in row] for row in sizes]
    largest = max((size for row in finite for size in row), default=0.0) or 1.0
    return [
        [(number, (size / largest) ** 0.5) for number, size in zip(row, line, strict=True)]
        for row, line in zip(side.rows, finite, strict=True)
    ]
