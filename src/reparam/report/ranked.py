"""A ranking in decibels: a line for each layer with a mark, and what all together come to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report._markup import element, layer_label, text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Ranked", "Reference", "decibel_ticks", "ranked_chart"]

_MARKS = {False: ("disc", "deploy"), True: ("ring", "comparator")}
"""Shape and tone of a mark; both differ, for not everybody sees the tone."""

_ROOM = 30
"""Characters of a name that leave room for what the layer is."""

_LEAST, _MOST = -20.0, 100.0
"""The axis reaches no further; marks beyond it stand at its ends, with their numbers beside."""


@dataclass(frozen=True)
class Ranked:
    """A line: a layer and its ratio; a marked one is drawn as a ring."""

    label: str
    detail: str
    value: float
    shown: str
    marked: bool = False


@dataclass(frozen=True)
class Reference:
    """A ratio of the whole, drawn across all lines."""

    value: float
    label: str
    dashed: bool


def ranked_chart(
    rows: Sequence[Ranked],
    references: Sequence[Reference],
    *,
    names: tuple[str, str],
    summary: str,
    most: int,
) -> str:
    """Marks on one axis in decibels, with a legend; further left is worse.

    Args:
        rows: top to bottom.
        references: what is drawn across all of them.
        names: what a disc and what a ring means; an empty one is left out.
        summary: what the chart shows, as the text alternative begins.
        most: lines that are shown at once; the others unfold.
    """
    ticks = decibel_ticks([*(row.value for row in rows), *(each.value for each in references)])
    drawn = [_row(row, references, ticks) for row in rows]
    spoken = "; ".join(f"{row.label}: {row.shown}" for row in rows[:most])
    lines = "; ".join(f"{each.label}: {each.value:.1f} dB" for each in references)
    shown = element(
        "div",
        *drawn[:most],
        _axis(ticks),
        class_="ranks",
        role="img",
        aria_label=f"{summary}. {spoken}. {lines}.",
    )
    return (
        _legend(names, references)
        + shown
        + _rest(rows[most:], [*drawn[most:], _axis(ticks)], summary)
    )


def _rest(rows: Sequence[Ranked], drawn: Sequence[str], summary: str) -> str:
    if not rows:
        return ""
    spoken = "; ".join(f"{row.label}: {row.shown}" for row in rows)
    return element(
        "details",
        element("summary", text(f"{len(rows)} more layers, which hurt less")),
        element("div", *drawn, class_="ranks", role="img", aria_label=f"{summary}. {spoken}."),
    )


def decibel_ticks(values: Sequence[float]) -> list[float]:
    """Round values around all of `values`, as far as a drawing of them goes.

    >>> decibel_ticks([31.0, 33.2, 47.9])
    [30.0, 35.0, 40.0, 45.0, 50.0]
    >>> decibel_ticks([12.0, 200.0])
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    held = [min(max(value, _LEAST), _MOST) for value in values]
    reach = max(held) - min(held)
    step = 5.0 if reach <= 25 else 10.0 if reach <= 50 else 20.0
    low = math.floor(min(held) / step)
    high = max(math.ceil(max(held) / step), low + 1)
    return [step * index for index in range(low, high + 1)]


def _at(value: float, ticks: Sequence[float]) -> str:
    share = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return f"left:{100 * min(max(share, 0.0), 1.0):.2f}%"


def _row(row: Ranked, references: Sequence[Reference], ticks: Sequence[float]) -> str:
    grid = (element("span", class_="gridline", style=_at(tick, ticks)) for tick in ticks)
    across = (
        element("span", class_=f"across {_stroke(each)}", style=_at(each.value, ticks))
        for each in references
    )
    shape, tone = _MARKS[row.marked]
    label = element(
        "div",
        layer_label(row.label, row.detail, room=_ROOM),
        class_="dot-label",
    )
    return element(
        "div",
        label,
        element(
            "div",
            *grid,
            element("span", class_="rule"),
            *across,
            element("span", class_=f"dotmark {shape}", style=_at(row.value, ticks)),
            class_="track",
        ),
        element("div", text(row.shown), class_="dot-value"),
        class_=f"dot-row role-{tone}",
    )


def _stroke(reference: Reference) -> str:
    return "dashed" if reference.dashed else "solid"


def _axis(ticks: Sequence[float]) -> str:
    labels = (
        element("span", text(f"{tick:g}"), class_="tick", style=_at(tick, ticks)) for tick in ticks
    )
    return element(
        "div",
        element("div", *labels, class_="track ticks"),
        element("div", text("dB"), class_="dot-value axis-title"),
        class_="dot-row dot-axis",
    )


def _legend(names: tuple[str, str], references: Sequence[Reference]) -> str:
    entries = [
        element("li", element("span", class_=f"dotmark {shape} role-{tone}") + text(name))
        for name, (shape, tone) in zip(names, _MARKS.values(), strict=True)
        if name
    ]
    entries += [
        element("li", element("span", class_=f"stroke {_stroke(each)}") + text(each.label))
        for each in references
    ]
    return element("ul", *entries, class_="legend")
