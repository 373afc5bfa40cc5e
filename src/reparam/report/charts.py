"""Bars and timelines, as HTML and SVG that need no script.

Horizontal positions are percentages and text is HTML or unscaled SVG text, so that a chart is as
readable on a phone as on a wide screen or on paper. Bars start at zero. Every figure carries its
numbers in its text alternative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report._markup import element, text
from reparam.report.numbers import nice_ticks, significant

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Bar", "Timeline", "bar_chart", "timelines"]

_BAR_HEIGHT = 30
_TIMELINE_HEIGHT = 168
_MAX_NAMED_STEPS = 14


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


@dataclass(frozen=True)
class Timeline:
    """One panel: an amount that changes in steps, with the name of each step."""

    label: str
    role: str
    steps: tuple[str, ...]
    values: tuple[float, ...]
    shown: tuple[str, ...]
    peak_shown: str


def bar_chart(bars: Sequence[Bar], *, unit: str, summary: str, maximum: float | None = None) -> str:
    """Horizontal bars from zero, with the interval of each as a whisker.

    Args:
        bars: the rows, top to bottom.
        unit: what the axis counts.
        summary: what the chart shows, as the text alternative begins.
        maximum: the right end of the axis; by default a round value past the longest whisker.
    """
    largest = max(max(bar.high, bar.value) for bar in bars)
    ticks = nice_ticks(largest if maximum is None else maximum)
    end = ticks[-1]
    rows = "".join(_bar_row(bar, ticks, end) for bar in bars)
    spoken = "; ".join(f"{bar.label} {bar.detail}".strip() + f": {bar.shown}" for bar in bars)
    return element(
        "div",
        rows + _bar_axis(ticks, end, unit),
        class_="bars",
        role="img",
        aria_label=f"{summary}. {spoken}.",
    )


def _bar_row(bar: Bar, ticks: Sequence[float], end: float) -> str:
    label = element(
        "div",
        element("span", text(bar.label), class_="name"),
        element("span", text(bar.detail), class_="detail") if bar.detail else "",
        class_="bar-label",
    )
    return element(
        "div",
        label,
        element("div", text(bar.shown), class_="bar-value"),
        _bar_drawing(bar, ticks, end),
        class_=f"bar-row role-{bar.role}",
    )


def _bar_drawing(bar: Bar, ticks: Sequence[float], end: float) -> str:
    marks = [
        element("line", x1=_share(tick, end), x2=_share(tick, end), y1=0, y2="100%", class_="grid")
        for tick in ticks
    ]
    marks.append(
        element(
            "rect",
            x=0,
            y=7,
            width=_share(bar.value, end),
            height=_BAR_HEIGHT - 14,
            rx=1.5,
            class_="bar" if bar.solid else "bar open",
        )
    )
    if bar.high > bar.low:
        marks += _whisker(_share(bar.low, end), _share(bar.high, end))
    if bar.goal is not None:
        at = _share(bar.goal, end)
        marks.append(element("line", x1=at, x2=at, y1=1, y2=_BAR_HEIGHT - 1, class_="goal"))
    return element("svg", *marks, class_="bar-drawing", height=_BAR_HEIGHT, aria_hidden="true")


def _whisker(low: str, high: str) -> list[str]:
    middle = _BAR_HEIGHT / 2
    ends = (
        element("line", x1=at, x2=at, y1=middle - 4, y2=middle + 4, class_="whisker")
        for at in (low, high)
    )
    return [element("line", x1=low, x2=high, y1=middle, y2=middle, class_="whisker"), *ends]


def _bar_axis(ticks: Sequence[float], end: float, unit: str) -> str:
    labels = []
    for tick in ticks:
        anchor = "start" if tick == 0 else "end" if tick == end else "middle"
        labels.append(
            element(
                "text",
                text(_tick(tick)),
                x=_share(tick, end),
                y=12,
                class_="tick",
                text_anchor=anchor,
            )
        )
    return element(
        "div",
        element("svg", *labels, class_="bar-drawing", height=18, aria_hidden="true"),
        element("div", text(unit), class_="axis-title"),
        class_="bar-row bar-axis",
    )


def _share(value: float, end: float) -> str:
    return f"{100 * min(value / end, 1.0):.3f}".rstrip("0").rstrip(".") + "%"


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else significant(value, 2)


def timelines(panels: Sequence[Timeline], *, unit: str, summary: str) -> str:
    """Panels side by side on one vertical scale from zero, each with its peak marked.

    Args:
        panels: left to right; on a narrow screen, top to bottom.
        unit: what the vertical axis counts.
        summary: what the figure shows, as each text alternative begins.
    """
    ticks = nice_ticks(max(max(panel.values) for panel in panels), wanted=4)
    drawn = "".join(_panel(panel, ticks, unit, summary) for panel in panels)
    return element("div", drawn, class_="panels")


def _panel(panel: Timeline, ticks: Sequence[float], unit: str, summary: str) -> str:
    head = element(
        "div",
        element("span", text(panel.label), class_="name"),
        element("span", text(f"peak {panel.peak_shown}"), class_="panel-peak"),
        class_="panel-head",
    )
    plot = element(
        "div",
        _scale(ticks),
        _steps(panel, ticks),
        _step_names(panel),
        class_="plot",
        role="img",
        aria_label=f"{summary}: {panel.label}. {_spoken_steps(panel)}",
    )
    note = element("div", text(unit), class_="axis-title")
    return element("div", head, plot, note, class_=f"panel role-{panel.role}")


def _scale(ticks: Sequence[float]) -> str:
    labels = (
        element(
            "text", text(_tick(tick)), x="100%", y=_height(tick, ticks) + 4, class_="tick",
            text_anchor="end",
        )
        for tick in ticks
    )  # fmt: skip
    return element("svg", *labels, class_="scale", height=_TIMELINE_HEIGHT, aria_hidden="true")


def _height(value: float, ticks: Sequence[float]) -> float:
    """Distance from the top of the plot, in pixels."""
    return _TIMELINE_HEIGHT * (1 - value / ticks[-1])


def _steps(panel: Timeline, ticks: Sequence[float]) -> str:
    """Columns without gaps; the view box stretches to whatever width there is."""
    width = 1000 / len(panel.values)
    marks = [
        element("line", x1=0, x2=1000, y1=y, y2=y, class_="grid")
        for y in (_height(tick, ticks) for tick in ticks)
    ]
    peak = max(panel.values)
    for index, (value, name, shown) in enumerate(
        zip(panel.values, panel.steps, panel.shown, strict=True)
    ):
        top = _height(value, ticks)
        marks.append(
            element(
                "rect",
                element("title", text(f"{name}: {shown}")),
                x=index * width,
                y=top,
                width=width,
                height=_TIMELINE_HEIGHT - top,
                class_="step peak" if value == peak else "step",
            )
        )
    top = _height(peak, ticks)
    marks.append(element("line", x1=0, x2=1000, y1=top, y2=top, class_="peak-line"))
    return element(
        "svg",
        *marks,
        class_="steps",
        viewBox=f"0 0 1000 {_TIMELINE_HEIGHT}",
        preserveAspectRatio="none",
        height=_TIMELINE_HEIGHT,
        aria_hidden="true",
    )


def _step_names(panel: Timeline) -> str:
    if len(panel.steps) > _MAX_NAMED_STEPS:
        return element("div", text(f"{len(panel.steps)} steps"), class_="step-names plain")
    names = (element("span", text(name)) for name in panel.steps)
    return element("div", *names, class_="step-names", aria_hidden="true")


def _spoken_steps(panel: Timeline) -> str:
    peak = f"The peak is {panel.peak_shown}"
    if len(panel.steps) > _MAX_NAMED_STEPS:
        return f"{peak}, over {len(panel.steps)} steps."
    named = ", ".join(
        f"{name} {shown}" for name, shown in zip(panel.steps, panel.shown, strict=True)
    )
    return f"{peak}. Step by step: {named}."
