"""Accuracy against latency as a drawing: points that can be reached by mouse, keyboard and finger.

Positions are percentages of whatever width there is; the names of the points are HTML, so that they
keep their size on a phone. Where a name stands beside its point is chosen so that few overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from reparam.report.numbers import nice_ticks

_WIDE, _NARROW = 640, 300
"""Widths in pixels for which the names are placed: a laptop's and a phone's."""

_GLYPH, _LINE, _GAP, _RADIUS = 7.2, 17, 10, 6
"""Width and height of a letter, distance of a name from its point, radius of a point; pixels."""

_SIDES = ("up left", "down right", "up right", "down left")

_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Dot:
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

    def __str__(self) -> str:
        """What a screen reader says."""
        return f"{self.label}: {', '.join(self.facts)}"


@dataclass(frozen=True)
class Scatter:
    """Points over a grid, the horizontal axis from zero; a line joins the strong ones.

    Attributes:
        dots: In the order in which the keyboard reaches them.
        x_title: What the horizontal axis counts.
        y_title: What the vertical axis counts.
        summary: What the chart shows, as the text alternative begins.
    """

    dots: Sequence[Dot]
    x_title: str
    y_title: str
    summary: str
    height: int = 360

    @property
    def x_ticks(self) -> list[float]:
        """Round values from zero past the last interval."""
        return nice_ticks(1.04 * max(max(point.high, point.x) for point in self.dots))

    @property
    def y_ticks(self) -> list[float]:
        """Whole values around all points."""
        low = math.floor(min(point.y for point in self.dots) - 0.5)
        high = math.ceil(max(point.y for point in self.dots) + 0.7)
        step = 1 if high - low <= 8 else 2
        return [float(low + step * i) for i in range(math.ceil((high - low) / step) + 1)]

    def left(self, x: float) -> float:
        """Where a value lies, as a share of the width."""
        return min(x / self.x_ticks[-1], 1.0)

    def top(self, y: float) -> float:
        """Where a value lies, as a share of the height."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return (high - y) / (high - low)

    def front(self) -> list[tuple[Dot, Dot]]:
        """The ends of the pieces of the line."""
        strong = sorted((point for point in self.dots if point.strong), key=lambda p: p.x)
        return list(pairwise(strong))

    def sides(self) -> list[str]:
        """Where each name goes: the first side, in the order of preference, with least overlap."""
        taken = {width: [self._around(p, width) for p in self.dots] for width in (_WIDE, _NARROW)}
        chosen = []
        for point in self.dots:
            costs = dict.fromkeys(_SIDES if point.strong else _SIDES[1:] + _SIDES[:1], 0.0)
            for side in costs:
                for width, boxes in taken.items():
                    box = self._name_box(point, width, side)
                    costs[side] += sum(_overlap(box, other) for other in boxes)
                    costs[side] += _LINE * max(0.0, -box[0] - 30, box[2] - width)
            best = min(costs, key=lambda side: costs[side])
            for width, boxes in taken.items():
                boxes.append(self._name_box(point, width, best))
            chosen.append(best)
        return chosen

    def _around(self, point: Dot, width: float) -> _Box:
        x, y = width * self.left(point.x), self.height * self.top(point.y)
        return (x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS)

    def _name_box(self, point: Dot, width: float, side: str) -> _Box:
        x, y = width * self.left(point.x), self.height * self.top(point.y)
        length = _GLYPH * len(point.name if width == _NARROW else point.label)
        left = x - _GAP - length if side.endswith("left") else x + _GAP
        top = y - _LINE - 2 if side.startswith("up") else y + 2
        return (left, top, left + length, top + _LINE)


def _overlap(a: _Box, b: _Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
