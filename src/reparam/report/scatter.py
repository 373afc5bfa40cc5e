"""Accuracy against latency as a drawing: points that can be reached by mouse, keyboard and finger.

Positions are percentages of whatever width there is; the names of the points are HTML, so that they
keep their size on a phone. Where a name stands beside its point is chosen so that few overlap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from reparam.report._markup import element, text
from reparam.report.numbers import nice_ticks, tick

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Mark", "scatter"]

_HEIGHT = 360
_WIDE, _NARROW = 640, 300
"""Widths in pixels for which the names are placed: a laptop's and a phone's."""

_GLYPH, _LINE, _GAP, _RADIUS = 7.2, 17, 10, 6
"""Width and height of a letter, distance of a name from its point, radius of a point; pixels."""

_SIDES = ("up left", "down right", "up right", "down left")


@dataclass(frozen=True)
class Mark:
    """A point: horizontal value with an interval, vertical value, and what is said about it.

    `prefix` is the part of the name that a narrow screen leaves out. A line runs through the
    `strong` points; what `hollow` ones mean, the caller's legend says.
    """

    prefix: str
    name: str
    tone: str
    x: float
    low: float
    high: float
    y: float
    facts: tuple[str, ...]
    strong: bool
    hollow: bool = False

    @property
    def label(self) -> str:
        """The whole name."""
        return f"{self.prefix}{self.name}"


@dataclass(frozen=True)
class _Frame:
    """The two axes: where a value lies, as a share of the width and of the height."""

    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]

    def left(self, x: float) -> float:
        return min(x / self.x_ticks[-1], 1.0)

    def top(self, y: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return (high - y) / (high - low)


def scatter(marks: Sequence[Mark], *, x_title: str, y_title: str, summary: str) -> str:
    """Points over a grid; a line joins the strong ones.

    Args:
        marks: in the order in which the keyboard reaches them.
        x_title: what the horizontal axis counts, from zero.
        y_title: what the vertical axis counts.
        summary: what the chart shows, as the text alternative begins.
    """
    frame = _frame(marks)
    spoken = "; ".join(f"{mark.label}: {', '.join(mark.facts)}" for mark in marks)
    drawing = element(
        "div",
        _grid(frame) + _lines(marks, frame),
        class_="scatter-drawing",
        role="img",
        aria_label=f"{summary}. {spoken}.",
    )
    points = "".join(
        _point(mark, frame, side) for mark, side in zip(marks, _sides(marks, frame), strict=True)
    )
    area = element("div", drawing, points, class_="scatter-area", style=f"height:{_HEIGHT}px")
    return element(
        "div",
        element("div", text(y_title), class_="axis-title"),
        area,
        element("div", text(x_title), class_="axis-title scatter-x"),
        class_="scatter",
    )


def _frame(marks: Sequence[Mark]) -> _Frame:
    low = math.floor(min(mark.y for mark in marks) - 0.5)
    high = math.ceil(max(mark.y for mark in marks) + 0.7)
    step = 1 if high - low <= 8 else 2
    y_ticks = [low + step * index for index in range(math.ceil((high - low) / step) + 1)]
    x_ticks = nice_ticks(1.04 * max(max(mark.high, mark.x) for mark in marks))
    return _Frame(tuple(x_ticks), tuple(map(float, y_ticks)))


def _grid(frame: _Frame) -> str:
    marks = []
    for value in frame.y_ticks:
        y = _percent(frame.top(value))
        marks.append(element("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        label = {"x": -8, "y": y, "dy": 4, "class_": "tick", "text_anchor": "end"}
        marks.append(element("text", text(f"{value:g}"), **label))
    for value in frame.x_ticks:
        x = _percent(frame.left(value))
        marks.append(element("line", x1=x, x2=x, y1=0, y2="100%", class_="grid"))
        label = {"x": x, "y": "100%", "dy": 18, "class_": "tick", "text_anchor": "middle"}
        marks.append(element("text", text(tick(value)), **label))
    return element("svg", *marks, class_="scatter-svg", aria_hidden="true")


def _lines(marks: Sequence[Mark], frame: _Frame) -> str:
    """The line through the strong points, and the interval of each point."""
    strong = sorted((mark for mark in marks if mark.strong), key=lambda mark: mark.x)
    drawn = [
        element(
            "line",
            x1=_percent(frame.left(start.x)),
            y1=_percent(frame.top(start.y)),
            x2=_percent(frame.left(end.x)),
            y2=_percent(frame.top(end.y)),
            class_="front",
        )
        for start, end in pairwise(strong)
    ]
    drawn += [
        element(
            "line",
            x1=_percent(frame.left(mark.low)),
            x2=_percent(frame.left(mark.high)),
            y1=_percent(frame.top(mark.y)),
            y2=_percent(frame.top(mark.y)),
            class_=f"whisker role-{mark.tone}",
        )
        for mark in marks
    ]
    return element("svg", *drawn, class_="scatter-svg", aria_hidden="true")


def _point(mark: Mark, frame: _Frame, side: str) -> str:
    tip = "".join(element("span", text(fact)) for fact in mark.facts)
    far = " far" if frame.left(mark.x) > 0.5 else ""
    return element(
        "button",
        element("span", class_="mark open" if mark.hollow else "mark"),
        element(
            "span",
            element("span", text(mark.prefix), class_="prefix") + text(mark.name),
            class_=f"tag {side}",
        ),
        element("span", element("b", text(mark.label)) + tip, class_=f"tip{far}"),
        type="button",
        class_=f"point role-{mark.tone}{' strong' if mark.strong else ''}",
        style=f"left:{_percent(frame.left(mark.x))};top:{_percent(frame.top(mark.y))}",
        aria_label=f"{mark.label}: {', '.join(mark.facts)}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


_Box = tuple[float, float, float, float]


def _sides(marks: Sequence[Mark], frame: _Frame) -> list[str]:
    """Where each name goes: the first side, in the order of preference, with least overlap."""
    taken: dict[int, list[_Box]] = {
        width: [_around(mark, frame, width) for mark in marks] for width in (_WIDE, _NARROW)
    }
    chosen = []
    for mark in marks:
        costs = dict.fromkeys(_SIDES if mark.strong else _SIDES[1:] + _SIDES[:1], 0.0)
        for side in costs:
            for width, boxes in taken.items():
                box = _name_box(mark, frame, width, side)
                costs[side] += sum(_overlap(box, other) for other in boxes)
                costs[side] += _LINE * max(0.0, -box[0] - 30, box[2] - width)
        best = min(costs, key=lambda side: costs[side])
        for width, boxes in taken.items():
            boxes.append(_name_box(mark, frame, width, best))
        chosen.append(best)
    return chosen


def _around(mark: Mark, frame: _Frame, width: float) -> _Box:
    x, y = width * frame.left(mark.x), _HEIGHT * frame.top(mark.y)
    return (x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS)


def _name_box(mark: Mark, frame: _Frame, width: float, side: str) -> _Box:
    x, y = width * frame.left(mark.x), _HEIGHT * frame.top(mark.y)
    length = _GLYPH * len(mark.name if width == _NARROW else mark.label)
    left = x - _GAP - length if side.endswith("left") else x + _GAP
    top = y - _LINE - 2 if side.startswith("up") else y + 2
    return (left, top, left + length, top + _LINE)


def _overlap(a: _Box, b: _Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
