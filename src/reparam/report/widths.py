"""Channels of every layer before and after, as pairs of bars in the order of the net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report._markup import element, layer_label, text
from reparam.report.numbers import nice_ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WidthRow", "width_chart"]

_ROOM = 22
"""Characters of a name that leave room for what the layer is."""


@dataclass(frozen=True)
class WidthRow:
    """A layer: its output channels before and after; `tag` is the group that it belongs to."""

    label: str
    detail: str
    before: int
    after: int
    tag: str = ""


def width_chart(rows: Sequence[WidthRow], *, summary: str, most: int) -> str:
    """Pairs of bars from zero, with a legend and an axis.

    Args:
        rows: top to bottom.
        summary: what the chart shows, as the text alternative begins.
        most: layers that are shown at once; the others unfold.
    """
    ticks = nice_ticks(max(max(row.before, row.after) for row in rows))
    drawn = [_row(row, ticks) for row in rows]
    shown = element(
        "div",
        *drawn[:most],
        _axis(ticks),
        class_="widths",
        role="img",
        aria_label=f"{summary}. {_spoken(rows[:most])}.",
    )
    return _legend(rows) + shown + _rest(rows[most:], [*drawn[most:], _axis(ticks)], summary)


def _rest(rows: Sequence[WidthRow], drawn: Sequence[str], summary: str) -> str:
    if not rows:
        return ""
    return element(
        "details",
        element("summary", text(f"{len(rows)} more layers")),
        element(
            "div",
            *drawn,
            class_="widths",
            role="img",
            aria_label=f"{summary}. {_spoken(rows)}.",
        ),
    )


def _spoken(rows: Sequence[WidthRow]) -> str:
    return "; ".join(
        f"{row.label}: {row.before} to {row.after}" + (f", group {row.tag}" if row.tag else "")
        for row in rows
    )


def _row(row: WidthRow, ticks: Sequence[float]) -> str:
    label = element(
        "div",
        layer_label(row.label, row.detail, room=_ROOM),
        element("span", text(row.tag), class_="tag-of") if row.tag else "",
        class_="dot-label",
    )
    grid = (element("span", class_="gridline", style=f"left:{_share(t, ticks)}") for t in ticks)
    shown = f"{row.before} → {row.after}" if row.before != row.after else f"{row.after}"
    return element(
        "div",
        label,
        element(
            "div",
            *grid,
            element("span", class_="wide before", style=f"width:{_share(row.before, ticks)}"),
            element("span", class_="wide after", style=f"width:{_share(row.after, ticks)}"),
            class_="track",
        ),
        element("div", text(shown), class_="dot-value"),
        class_="dot-row",
    )


def _axis(ticks: Sequence[float]) -> str:
    labels = (
        element("span", text(f"{tick:,.0f}"), class_="tick", style=f"left:{_share(tick, ticks)}")
        for tick in ticks
        if tick == int(tick)
    )
    return element(
        "div",
        element("div", *labels, class_="track ticks"),
        element("div", text("channels"), class_="dot-value axis-title"),
        class_="dot-row dot-axis",
    )


def _share(value: float, ticks: Sequence[float]) -> str:
    return f"{100 * value / ticks[-1]:.2f}%"


def _legend(rows: Sequence[WidthRow]) -> str:
    entries = [("wide before", "before"), ("wide after", "after")]
    marks = [element("li", element("span", class_=name) + text(label)) for name, label in entries]
    if any(row.tag for row in rows):
        lead = element("span", text("A"), class_="tag-of")
        marks.append(element("li", lead + text("layers with one letter lose channels together")))
    return element("ul", *marks, class_="legend")
