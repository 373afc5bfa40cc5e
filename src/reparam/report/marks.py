"""Marks on one axis: what bars, dots, rankings, pairs of widths and timelines are made of.

A row is a label, a track with marks, and its number in words. Positions are percentages and text is
HTML, so that a chart is as readable on a phone as on a wide screen or on paper, without a script.
Every chart carries its numbers in its text alternative; ``assets/draw.html.j2`` draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from reparam.report.numbers import nice_ticks, percent, wilson_interval

_SHAPES = ("disc", "ring", "square", "box", "diamond", "rhomb")
"""Of marks: colour already says which model it is, and not everybody sees it."""


@dataclass(frozen=True)
class Mark:
    """A mark at a value, or from one to another; `kind` is its class in the style sheet."""

    kind: str
    start: float
    end: float | None = None


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

    def style(self, start: float, end: float | None = None) -> str:
        """The place of a mark, for its style.

        >>> Axis([0.0, 10.0], "ms").style(2, 5)
        'left:20.00%;width:30.00%'
        """
        left = f"left:{self.share(start):.2f}%"
        return left if end is None else f"{left};width:{self.share(end) - self.share(start):.2f}%"


@dataclass(frozen=True)
class Row:
    """One line: its name, smaller what it is, its marks, and its number in words.

    `role` decides the colour, `tag` is a letter beside the name. A screen reader says the name,
    what it is, and the number; or, after the name, what is in `spoken`.
    """

    label: str
    marks: Sequence[Mark]
    shown: str
    detail: str = ""
    role: str = ""
    tag: str = ""
    spoken: str = ""

    def __str__(self) -> str:
        """What a screen reader says."""
        if self.spoken:
            return f"{self.label}: {self.spoken}"
        return f"{f'{self.label} {self.detail}'.strip()}: {self.shown}"


@dataclass(frozen=True)
class Chart:
    """Rows from top to bottom with an axis below.

    Attributes:
        summary: What the chart shows, as the text alternative begins.
        axis: What the marks stand on.
        rows: At least one.
        kind: Its class in the style sheet.
        layers: Whether the rows are layers of a net, by their paths.
        legend: Classes of marks, and what they mean.
        also: What else the text alternative says.
        most: Rows that are shown at once; the others unfold.
        more: What those are.
    """

    summary: str
    axis: Axis
    rows: Sequence[Row]
    kind: str = "bars"
    layers: bool = False
    legend: Sequence[tuple[str, str]] = ()
    also: Sequence[str] = ()
    most: int | None = None
    more: str = ""

    def parts(self) -> list[tuple[Sequence[Row], str]]:
        """The rows that are shown, then those that unfold, each with their text alternative."""
        shown, rest = self.rows[: self.most], self.rows[len(self.rows[: self.most]) :]
        found = [(shown, self._told(shown, "; ".join(self.also)))]
        return [*found, (rest, self._told(rest))] if rest else found

    def _told(self, rows: Sequence[Row], also: str = "") -> str:
        told = [self.summary, "; ".join(map(str, rows)), *filter(None, [also])]
        return f"{'. '.join(told)}."


def bar(
    value: float,
    *,
    interval: tuple[float, float] | None = None,
    goal: float | None = None,
    solid: bool = True,
) -> list[Mark]:
    """A value as a bar from zero.

    Args:
        value: Where the bar ends.
        interval: Its ends, drawn as a whisker; a value that was counted has none.
        goal: A value to reach, drawn as a line.
        solid: Whether the bar is filled.
    """
    marks = [Mark("bar" if solid else "bar open", 0, value)]
    if interval is not None and interval[1] > interval[0]:
        marks.append(Mark("whisker", *interval))
    return marks if goal is None else [*marks, Mark("goal", goal)]


def bar_chart(rows: Sequence[Row], *, unit: str, summary: str, least: float = 0.0) -> Chart:
    """Rows on one axis from zero, which ends past the last mark and not before `least`."""
    ends = [mark.start if mark.end is None else mark.end for row in rows for mark in row.marks]
    return Chart(summary, Axis(nice_ticks(max(least, *ends)), unit), rows)


def dot_chart(
    rows: Iterable[tuple[str, str, Mapping[str, float]]],
    names: Sequence[str],
    show: Callable[[float], str],
    *,
    unit: str,
    summary: str,
) -> Chart:
    """One line with a mark for each of several things, on one axis from zero, and a legend.

    Args:
        rows: A label, a role, and the value of each thing that has one.
        names: What the things are called.
        show: How a value is written.
        unit: What the axis counts.
        summary: What the chart shows, as the text alternative begins.
    """
    shapes = {name: f"dotmark {_SHAPES[i % len(_SHAPES)]}" for i, name in enumerate(names)}
    drawn = []
    for label, role, values in rows:
        least, most = min(values.values()), max(values.values())
        marks = [Mark("span", least, most)]
        marks += [Mark(shapes[name], values[name]) for name in names if name in values]
        spoken = ", ".join(f"{name} {show(values[name])}" for name in names if name in values)
        drawn.append(Row(label, marks, show(least), role=role, spoken=spoken))
    axis = Axis(nice_ticks(max(mark.start for row in drawn for mark in row.marks)), unit)
    legend = [(shape, name) for name, shape in shapes.items()]
    return Chart(summary, axis, drawn, "dots", legend=legend)


def share_bar(
    label: str, role: str, correct: int, total: int, *, detail: str = "", solid: bool = True
) -> Row:
    """A share of samples as a bar, with its 95 % interval."""
    low, high = wilson_interval(correct, total)
    marks = bar(100 * correct / total, interval=(100 * low, 100 * high), solid=solid)
    return Row(label, marks, percent(correct / total), detail, role)


def accuracy_chart(rows: Sequence[Row], summary: str) -> Chart:
    """Shares that are right, on an axis to 100 %."""
    return bar_chart(rows, unit="% correct", summary=summary, least=100)
