"""Amounts that change in steps, side by side on one vertical scale, as HTML and SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report._markup import element, text
from reparam.report.numbers import nice_ticks, tick

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Timeline", "timelines"]

_HEIGHT = 168
_MAX_NAMED_STEPS = 14


@dataclass(frozen=True)
class Timeline:
    """One panel: an amount that changes in steps, with the name of each step."""

    label: str
    role: str
    steps: tuple[str, ...]
    values: tuple[float, ...]
    shown: tuple[str, ...]
    peak_shown: str


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
            "text", text(tick(at)), x="100%", y=_height(at, ticks) + 4, class_="tick",
            text_anchor="end",
        )
        for at in ticks
    )  # fmt: skip
    return element("svg", *labels, class_="scale", height=_HEIGHT, aria_hidden="true")


def _height(value: float, ticks: Sequence[float]) -> float:
    """Distance from the top of the plot, in pixels."""
    return _HEIGHT * (1 - value / ticks[-1])


def _steps(panel: Timeline, ticks: Sequence[float]) -> str:
    """Columns without gaps; the view box stretches to whatever width there is."""
    width = 1000 / len(panel.values)
    marks = [
        element("line", x1=0, x2=1000, y1=y, y2=y, class_="grid")
        for y in (_height(at, ticks) for at in ticks)
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
                height=_HEIGHT - top,
                class_="step peak" if value == peak else "step",
            )
        )
    top = _height(peak, ticks)
    marks.append(element("line", x1=0, x2=1000, y1=top, y2=top, class_="peak-line"))
    return element(
        "svg",
        *marks,
        class_="steps",
        viewBox=f"0 0 1000 {_HEIGHT}",
        preserveAspectRatio="none",
        height=_HEIGHT,
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
