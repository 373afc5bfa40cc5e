"""One line a model with a mark for each engine, on one scale from zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report._markup import element, text
from reparam.report.numbers import milliseconds, nice_ticks, significant

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DotRow", "dot_chart"]

_SHAPES = ("disc", "ring", "square", "box", "diamond", "rhomb")
"""Engines differ by shape: colour already says which model it is, and not everybody sees it."""


@dataclass(frozen=True)
class DotRow:
    """A model: its median milliseconds in each engine, None where it was not measured."""

    label: str
    tone: str
    values: tuple[float | None, ...]


def dot_chart(rows: Sequence[DotRow], engines: Sequence[str], *, summary: str) -> str:
    """Rows of marks with a legend and an axis.

    Args:
        rows: top to bottom.
        engines: what the values of a row belong to.
        summary: what the chart shows, as the text alternative begins.
    """
    ticks = nice_ticks(max(v for row in rows for v in row.values if v is not None))
    spoken = "; ".join(f"{row.label}: {_spoken(row, engines)}" for row in rows)
    body = "".join(_row(row, ticks) for row in rows) + _axis(ticks)
    chart = element("div", body, class_="dots", role="img", aria_label=f"{summary}. {spoken}.")
    return _legend(engines) + chart


def _spoken(row: DotRow, engines: Sequence[str]) -> str:
    return ", ".join(
        f"{engine} {milliseconds(value)}"
        for engine, value in zip(engines, row.values, strict=True)
        if value is not None
    )


def _legend(engines: Sequence[str]) -> str:
    entries = (
        element("li", element("span", class_=f"dotmark {_shape(index)}") + text(engine))
        for index, engine in enumerate(engines)
    )
    return element("ul", *entries, class_="legend")


def _shape(index: int) -> str:
    return _SHAPES[index % len(_SHAPES)]


def _row(row: DotRow, ticks: Sequence[float]) -> str:
    present = [value for value in row.values if value is not None]
    grid = "".join(_gridline(tick, ticks) for tick in ticks)
    span = element(
        "span",
        class_="span",
        style=f"left:{_share(min(present), ticks)};right:{_share(max(present), ticks, back=True)}",
    )
    marks = "".join(
        element("span", class_=f"dotmark {_shape(i)}", style=f"left:{_share(value, ticks)}")
        for i, value in enumerate(row.values)
        if value is not None
    )
    return element(
        "div",
        element("div", text(row.label), class_="dot-label"),
        element("div", grid, span, marks, class_="track"),
        element("div", text(milliseconds(min(present))), class_="dot-value"),
        class_=f"dot-row role-{row.tone}",
    )


def _gridline(tick: float, ticks: Sequence[float]) -> str:
    return element("span", class_="gridline", style=f"left:{_share(tick, ticks)}")


def _axis(ticks: Sequence[float]) -> str:
    labels = "".join(
        element("span", text(_tick(tick)), class_="tick", style=f"left:{_share(tick, ticks)}")
        for tick in ticks
    )
    return element(
        "div",
        element("div", labels, class_="track ticks"),
        element("div", text("least, ms"), class_="dot-value axis-title"),
        class_="dot-row dot-axis",
    )


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else significant(value, 2)


def _share(value: float, ticks: Sequence[float], *, back: bool = False) -> str:
    share = value / ticks[-1]
    return f"{100 * (1 - share if back else share):.2f}%"
