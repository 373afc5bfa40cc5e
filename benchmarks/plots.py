"""Small pictures for the documentation, as SVG: lines with intervals, and marks with names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from reparam._support.files import write_text
from reparam.report.numbers import nice_ticks

__all__ = ["COLOURS", "Panel", "Point", "Series", "save"]

COLOURS = ("#1d4ed8", "#b45309", "#047857", "#7c3aed", "#be123c", "#52606d")
_LEFT, _TOP, _BOTTOM, _GAP = 46, 46, 44, 26


@dataclass(frozen=True)
class Point:
    """A value with its interval, and a name beside it where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    name: str = ""
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line or not."""

    label: str
    colour: str
    points: tuple[Point, ...]
    line: bool = True
    marks: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    y_from_zero: bool = False
    x_names: tuple[str, ...] = ()  # what stands below 1, 2, 3 and so on, instead of numbers


def save(
    path: Path,
    panels: Sequence[Panel],
    summary: str,
    *,
    columns: int = 2,
    height: int = 330,
    check: bool = False,
) -> bool:
    """Write the panels side by side, `columns` in a row, with one legend; or only compare.

    Returns:
        Whether the file held this very picture already.
    """
    columns = min(columns, len(panels))
    width = (720 - _GAP * (columns - 1)) / columns
    rows = -(-len(panels) // columns)
    parts = [f'<rect width="740" height="{rows * height + 36}" fill="#ffffff"/>']
    for index, panel in enumerate(panels):
        x, y = 10 + (index % columns) * (width + _GAP), (index // columns) * height
        inside = "".join(_panel(panel, width, height))
        parts.append(f'<g transform="translate({x:.0f},{y})">{inside}</g>')
    parts += _legend(panels, rows * height + 20)
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 {rows * height + 36}" '
        f'role="img" aria-label="{escape(summary)}"><style>text{{font:12px system-ui,sans-serif;'
        f"fill:#1f2933}}</style>{''.join(parts)}</svg>\n"
    )
    same = path.exists() and path.read_text(encoding="utf-8") == drawing
    if not same and not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, drawing)
    return same


class _Frame:
    """Where a value lies in a panel."""

    def __init__(self, panel: Panel, width: float, height: float) -> None:
        points = [point for series in panel.series for point in series.points]
        self.left, self.right = _LEFT, width - 8
        self.top, self.bottom = _TOP, height - _BOTTOM
        self.x_ticks = nice_ticks(1.04 * max(point.x for point in points))
        lowest = min(point.y if point.low is None else point.low for point in points)
        highest = max(point.y if point.high is None else point.high for point in points)
        self.y_ticks = _ticks(0.0 if panel.y_from_zero else lowest, highest)

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * value / self.x_ticks[-1]

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """Round values around an interval."""
    step = nice_ticks(max(high - low, 1e-9))[1]
    first = int(low // step)
    count = int(-(-(high - first * step) // step))
    return [(first + index) * step for index in range(count + 1)]


def _panel(panel: Panel, width: float, height: float) -> list[str]:
    frame = _Frame(panel, width, height)
    parts = [f'<text x="4" y="14" font-weight="600">{escape(panel.title)}</text>']
    parts.append(f'<text x="4" y="28" fill="#52606d">{escape(panel.y_title)}</text>')
    for tick in frame.y_ticks:
        y = frame.y(tick)
        parts.append(f'<path d="M{frame.left},{y:.1f} H{frame.right:.1f}" stroke="#e4e7eb"/>')
        parts.append(_text(frame.left - 6, y + 4, "end", f"{tick:g}"))
    named = dict(enumerate(panel.x_names, start=1)) or {x: f"{x:g}" for x in frame.x_ticks}
    parts += [_text(frame.x(x), frame.bottom + 17, "middle", name) for x, name in named.items()]
    middle = (frame.left + frame.right) / 2
    parts.append(_text(middle, frame.bottom + 35, "middle", panel.x_title))
    parts.append(f'<path d="M{frame.left},{frame.bottom} H{frame.right:.1f}" stroke="#52606d"/>')
    taken: list[tuple[float, float, float, float]] = []
    for series in panel.series:
        parts += _series(series, frame, taken)
    return parts


def _series(series: Series, frame: _Frame, taken: list[tuple[float, ...]]) -> list[str]:
    colour, parts = series.colour, []
    if series.line:
        path = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in series.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
    for point in series.points:
        x, y = frame.x(point.x), frame.y(point.y)
        if point.low is not None and point.high is not None:
            low, high = frame.y(point.low), frame.y(point.high)
            parts.append(f'<path d="M{x:.1f},{low:.1f} V{high:.1f}" stroke="{colour}"/>')
        if series.marks:
            fill = "#ffffff" if point.hollow else colour
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{colour}"/>'
            )
        if point.name:
            parts.append(_name(point.name, x, y, frame, taken))
    return parts


def _name(name: str, x: float, y: float, frame: _Frame, taken: list[tuple[float, ...]]) -> str:
    """A name beside its point, on the side with least in its way."""
    length = 6.2 * len(name)

    def box(side: str) -> tuple[float, float, float, float]:
        left = x + 7 if "right" in side else x - 7 - length
        top = y - 15 if "up" in side else y + 3
        return (left, top, left + length, top + 12)

    def cost(side: str) -> float:
        left, top, right, bottom = box(side)
        outside = max(0.0, frame.left - left, right - frame.right)
        return 12 * outside + sum(
            max(0.0, min(right, c) - max(left, a)) * max(0.0, min(bottom, d) - max(top, b))
            for a, b, c, d in taken
        )

    best = min(("up left", "up right", "down right", "down left"), key=cost)
    taken.append(box(best))
    left, top, *_ = box(best)
    return f'<text x="{left:.1f}" y="{top + 10:.1f}" font-size="11">{escape(name)}</text>'


def _text(x: float, y: float, anchor: str, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _legend(panels: Sequence[Panel], y: float) -> list[str]:
    labels = dict.fromkeys(
        (series.label, series.colour) for panel in panels for series in panel.series if series.label
    )
    parts, x = [], float(_LEFT)
    for label, colour in labels:
        parts.append(f'<circle cx="{x:.0f}" cy="{y - 4:.0f}" r="4" fill="{colour}"/>')
        parts.append(_text(x + 9, y, "start", label))
        x += 28 + 6.6 * len(label)
    return parts
