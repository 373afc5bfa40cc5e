"""Charts of rows: bars with intervals, marks of engines, rankings in decibels, pairs of widths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report._markup import element, layer_label, text
from reparam.report.numbers import milliseconds, nice_ticks
from reparam.report.rows import Axis, Row, label, legend, mark, row_chart

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Bar",
    "DotRow",
    "Ranked",
    "Reference",
    "WidthRow",
    "bar_chart",
    "decibel_ticks",
    "dot_chart",
    "ranked_chart",
    "width_chart",
]

_SHAPES = ("disc", "ring", "square", "box", "diamond", "rhomb")
"""Engines differ by shape: colour already says which model it is, and not everybody sees it."""

_LEAST, _MOST = -20.0, 100.0
"""Decibels that a ranking reaches; marks beyond stand at its ends, with their numbers beside."""


@dataclass(frozen=True)
class Bar:
    """One row: a value with an interval, drawn in the colour of a model's role.

    A value that was counted has no interval: `low` and `high` are that value. `goal` is a value to
    reach, drawn as a line.
    """

    label: str
    detail: str
    role: str
    value: float
    low: float
    high: float
    shown: str
    solid: bool = True
    goal: float | None = None


def bar_chart(bars: Sequence[Bar], *, unit: str, summary: str, maximum: float | None = None) -> str:
    """Horizontal bars from zero, with the interval of each as a whisker.

    Args:
        bars: the rows, top to bottom.
        unit: what the axis counts.
        summary: what the chart shows, as the text alternative begins.
        maximum: the right end of the axis; by default a round value past the longest whisker.
    """
    largest = max(max(bar.high, bar.value) for bar in bars)
    axis = Axis(nice_ticks(largest if maximum is None else maximum), unit)
    return row_chart([_bar(bar, axis) for bar in bars], axis, kind="bars", summary=summary)


def _bar(bar: Bar, axis: Axis) -> Row:
    marks = [mark("bar" if bar.solid else "bar open", axis, 0, bar.value)]
    if bar.high > bar.low:
        marks.append(mark("whisker", axis, bar.low, bar.high))
    if bar.goal is not None:
        marks.append(mark("goal", axis, bar.goal))
    spoken = f"{bar.label} {bar.detail}".strip() + f": {bar.shown}"
    return Row(label(bar.label, bar.detail), marks, bar.shown, spoken, bar.role)


@dataclass(frozen=True)
class DotRow:
    """A model: its median milliseconds in each engine, None where it was not measured."""

    label: str
    tone: str
    values: tuple[float | None, ...]


def dot_chart(rows: Sequence[DotRow], engines: Sequence[str], *, summary: str) -> str:
    """One line a model with a mark for each engine, on one scale from zero, and a legend.

    Args:
        rows: top to bottom.
        engines: what the values of a row belong to.
        summary: what the chart shows, as the text alternative begins.
    """
    axis = Axis(nice_ticks(max(v for r in rows for v in r.values if v is not None)), "least, ms")
    shapes = [f"dotmark {_SHAPES[index % len(_SHAPES)]}" for index in range(len(engines))]
    drawn = [_dots(row, engines, shapes, axis) for row in rows]
    marks = [(element("span", class_=s), e) for s, e in zip(shapes, engines, strict=True)]
    return legend(marks) + row_chart(drawn, axis, kind="dots", summary=summary)


def _dots(row: DotRow, engines: Sequence[str], shapes: Sequence[str], axis: Axis) -> Row:
    timed = [
        (value, engine, shape)
        for value, engine, shape in zip(row.values, engines, shapes, strict=True)
        if value is not None
    ]
    least, largest = (pick(value for value, *_ in timed) for pick in (min, max))
    marks = [mark("span", axis, least, largest)]
    marks += [mark(shape, axis, value) for value, _, shape in timed]
    told = ", ".join(f"{engine} {milliseconds(value)}" for value, engine, _ in timed)
    return Row(label(row.label), marks, milliseconds(least), f"{row.label}: {told}", row.tone)


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

    @property
    def stroke(self) -> str:
        """How its line is drawn."""
        return "dashed" if self.dashed else "solid"


_RANKED = {False: ("dotmark disc", "deploy"), True: ("dotmark ring", "comparator")}
"""Shape and tone of a mark; both differ, for not everybody sees the tone."""


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
    values = [*(row.value for row in rows), *(each.value for each in references)]
    axis = Axis(decibel_ticks(values), "dB")
    across = [
        element("span", class_="rule"),
        *(mark(f"across {each.stroke}", axis, each.value) for each in references),
    ]
    drawn = []
    for row in rows:
        shape, tone = _RANKED[row.marked]
        marks, spoken = [*across, mark(shape, axis, row.value)], f"{row.label}: {row.shown}"
        named = layer_label(row.label, row.detail, room=30)
        drawn.append(Row(named, marks, row.shown, spoken, tone))
    entries = [
        (element("span", class_=f"{shape} role-{tone}"), name)
        for name, (shape, tone) in zip(names, _RANKED.values(), strict=True)
        if name
    ]
    entries += [(element("span", class_=f"stroke {r.stroke}"), r.label) for r in references]
    return legend(entries) + row_chart(
        drawn, axis, kind="ranks", summary=summary, most=most,
        also=[f"{each.label}: {each.value:.1f} dB" for each in references],
        more="more layers, which hurt less",
    )  # fmt: skip


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


@dataclass(frozen=True)
class WidthRow:
    """A layer: its output channels before and after; `tag` is the group that it belongs to."""

    label: str
    detail: str
    before: int
    after: int
    tag: str = ""


def width_chart(rows: Sequence[WidthRow], *, summary: str, most: int) -> str:
    """Pairs of bars from zero, in the order of the net, with a legend.

    Args:
        rows: top to bottom.
        summary: what the chart shows, as the text alternative begins.
        most: layers that are shown at once; the others unfold.
    """
    axis = Axis(nice_ticks(max(max(row.before, row.after) for row in rows)), "channels")
    entries = [(element("span", class_=f"wide {when}"), when) for when in ("before", "after")]
    if any(row.tag for row in rows):
        entries.append((_tag("A"), "layers with one letter lose channels together"))
    drawn = [_pair(row, axis) for row in rows]
    chart = row_chart(drawn, axis, kind="widths", summary=summary, most=most, more="more layers")
    return legend(entries) + chart


def _pair(row: WidthRow, axis: Axis) -> Row:
    marks = [mark("wide before", axis, 0, row.before), mark("wide after", axis, 0, row.after)]
    named = layer_label(row.label, row.detail, room=22) + (_tag(row.tag) if row.tag else "")
    shown = f"{row.before} → {row.after}" if row.before != row.after else f"{row.after}"
    spoken = f"{row.label}: {row.before} to {row.after}"
    return Row(named, marks, shown, spoken + (f", group {row.tag}" if row.tag else ""))


def _tag(letter: str) -> str:
    return element("span", text(letter), class_="tag-of")
