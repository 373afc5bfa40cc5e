"""Rows of marks on one horizontal axis: what bars, dots, rankings and pairs of widths are made of.

A row is a label, a track with marks, and its number in words. Positions are percentages and text is
HTML, so that a chart is as readable on a phone as on a wide screen or on paper, without a script.
Every chart carries its numbers in its text alternative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report._markup import element, text
from reparam.report.numbers import tick

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Axis", "Row", "label", "legend", "mark", "row_chart"]


@dataclass(frozen=True)
class Axis:
    """Ticks from the left end to the right end, and what they count."""

    ticks: Sequence[float]
    unit: str

    def share(self, value: float) -> float:
        """Where a value lies, in per cent of the width; one beyond an end stands there.

        >>> Axis([0.0, 5.0, 10.0], "ms").share(2.5)
        25.0
        """
        low, high = self.ticks[0], self.ticks[-1]
        return 100 * min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Row:
    """One line: `label` and `marks` are markup; `spoken` is what a screen reader says."""

    label: str
    marks: Sequence[str]
    shown: str
    spoken: str
    role: str = ""


def mark(kind: str, axis: Axis, start: float, end: float | None = None) -> str:
    """A mark at a value, or from one to another."""
    style = f"left:{axis.share(start):.2f}%"
    if end is not None:
        style += f";width:{axis.share(end) - axis.share(start):.2f}%"
    return element("span", class_=kind, style=style)


def label(name: str, detail: str = "") -> str:
    """The name of a row and, smaller, what it is."""
    small = element("span", text(detail), class_="detail") if detail else ""
    return element("span", text(name), class_="name") + small


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """What each mark, given as markup, means."""
    return element(
        "ul", *(element("li", mark + text(name)) for mark, name in entries), class_="legend"
    )


def row_chart(
    rows: Sequence[Row],
    axis: Axis,
    *,
    kind: str,
    summary: str,
    also: Sequence[str] = (),
    most: int | None = None,
    more: str = "",
) -> str:
    """Rows from top to bottom with an axis below.

    Args:
        rows: at least one.
        axis: what the marks stand on.
        kind: class of the chart in the style sheet.
        summary: what the chart shows, as the text alternative begins.
        also: what else it says.
        most: rows that are shown at once; the others unfold.
        more: what those are.
    """
    shown = _chart(rows[:most], axis, kind, summary, also)
    if most is None or len(rows) <= most:
        return shown
    rest = rows[most:]
    head = element("summary", text(f"{len(rest)} {more}"))
    return shown + element("details", head, _chart(rest, axis, kind, summary, ()))


def _chart(rows: Sequence[Row], axis: Axis, kind: str, summary: str, also: Sequence[str]) -> str:
    told = [summary, "; ".join(row.spoken for row in rows), *filter(None, ["; ".join(also)])]
    return element(
        "div",
        *(_row(row, axis) for row in rows),
        _axis(axis),
        class_=f"rows {kind}",
        role="img",
        aria_label=f"{'. '.join(told)}.",
    )


def _row(row: Row, axis: Axis) -> str:
    grid = (mark("gridline", axis, at) for at in axis.ticks)
    return element(
        "div",
        element("div", row.label, class_="row-label"),
        element("div", *grid, *row.marks, class_="track"),
        element("div", text(row.shown), class_="row-value"),
        class_=f"row role-{row.role}" if row.role else "row",
    )


def _axis(axis: Axis) -> str:
    labels = (
        element("span", text(tick(at)), class_="tick", style=f"left:{axis.share(at):.2f}%")
        for at in axis.ticks
    )
    return element(
        "div",
        element("div", *labels, class_="track ticks"),
        element("div", text(axis.unit), class_="row-value axis-title"),
        class_="row row-axis",
    )
