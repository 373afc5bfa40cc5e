"""What the page shows of nets with fewer channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from reparam.report.marks import (
    Axis,
    Chart,
    Mark,
    Row,
    accuracy_chart,
    bar,
    bar_chart,
    share_bar,
)
from reparam.report.numbers import (
    change,
    count,
    milliseconds,
    nice_ticks,
    of,
    percent,
    span,
    typeset,
)
from reparam.report.sections import Part, section
from reparam.report.tables import Column, Line, Table

if TYPE_CHECKING:
    from reparam.report.compressed import PruningRecord
    from reparam.report.results import Results

_MOST = 40
"""Layers that are drawn at once; the others unfold."""

_PAIR = ("before", "after")


def points_lost(record: PruningRecord) -> float | None:
    """Points of accuracy lost, or None where nothing was judged."""
    before, after = record.correct_before, record.correct_after
    if before is None or after is None or not record.samples:
        return None
    return 100 * (before - after) / record.samples


def macs_left(record: PruningRecord) -> float:
    """Share of the multiply-adds."""
    return record.multiply_adds_after / record.multiply_adds_before


def target_met(record: PruningRecord) -> bool | None:
    """Whether there is as little left as was asked for; None if that is not known."""
    if record.macs_share is not None:
        return macs_left(record) <= record.macs_share
    if record.latency is None:
        return None
    if record.latency_share is not None:
        return record.latency.ratio <= record.latency_share
    if record.latency_ms is not None:
        return 1e3 * record.latency.after <= record.latency_ms
    return None


@section("pruning", "Pruning")
def _pruning(results: Results) -> Iterable[Part]:
    if results.prunings:
        yield Part(tables={"overview": _overview(results.prunings)})
    for record in results.prunings:
        tags = _tags(record)
        charts = {"shares": _shares(record), "widths": _widths(record, tags)}
        if points_lost(record) is not None:
            charts["accuracy"] = _accuracy(record)
        yield Part(record, charts, {"layers": _layers(record)} | _more_tables(record))


def _overview(records: Sequence[PruningRecord]) -> Table:
    columns = [
        Column("Net"),
        *(Column(title, _left, "count", _PAIR) for title in ("Multiply-adds", "Parameters")),
        Column("Latency", _timed, "ms", (*_PAIR, "share")),
        Column("Accuracy", _judged, "samples", (*_PAIR, "of")),
        Column("Points lost", "{:.2f}".format),
        Column("Layers with fewer outputs", of, "layers", ("layers", "of")),
        Column("Layers tied to others", of, "layers", ("layers", "of")),
    ]  # fmt: skip
    lines = []
    for r in records:
        layers, timed = len(r.layers), r.latency
        cells: list[Any] = [
            (r.multiply_adds_before, r.multiply_adds_after),
            (r.parameters_before, r.parameters_after),
            (1e3 * timed.before, 1e3 * timed.after, timed.ratio) if timed else None,
            None if points_lost(r) is None else (r.correct_before, r.correct_after, r.samples),
            points_lost(r),
            (sum(layer.before[1] != layer.after[1] for layer in r.layers), layers),
            (sum(len(group.layers) for group in r.groups), layers),
        ]
        lines.append(Line(r.model, cells))
    caption = (
        "Before and after, with the share that is left, and what that cost before any training "
        "on; points lost are below zero where accuracy was gained"
    )
    return Table("Pruned nets", caption, columns, lines)


def _left(pair: tuple[int, int]) -> str:
    return f"{count(pair[0])} → {count(pair[1])} ({pair[1] / pair[0]:.2f})"


def _timed(timed: tuple[float, float, float]) -> str:
    return f"{milliseconds(timed[0])} → {milliseconds(timed[1])} ({timed[2]:.2f})"


def _judged(counts: tuple[int, int, int]) -> str:
    before, after, total = counts
    return f"{percent(before / total)} → {percent(after / total)}"


def _shares(record: PruningRecord) -> Chart:
    """What is left, with what was asked for."""
    rows = []
    for label, name, goal in (
        ("Multiply-adds", "multiply_adds", record.macs_share), ("Parameters", "parameters", None),
    ):  # fmt: skip
        before, after = (getattr(record, f"{name}_{when}") for when in _PAIR)
        detail = f"{count(before)} → {count(after)}"
        share = after / before
        rows.append(Row(label, bar(share, goal=goal), f"{share:.2f}", detail, "deploy"))
    if (timed := record.latency) is not None:
        goal = record.latency_share
        if record.latency_ms is not None:
            goal = record.latency_ms / (1e3 * timed.before)
        detail = f"{milliseconds(1e3 * timed.before)} → {milliseconds(1e3 * timed.after)}"
        marks = bar(timed.ratio, interval=timed.quartiles, goal=goal)
        rows.append(Row("Latency", marks, f"{timed.ratio:.2f}", detail, "deploy"))
    summary = f"What is left of {record.model}, as shares of before"
    return bar_chart(rows, unit="of before", summary=summary, least=1.0)


def _accuracy(record: PruningRecord) -> Chart:
    told = (
        ("Before", "comparator", record.correct_before),
        ("Pruned", "deploy", record.correct_after),
    )
    rows = [share_bar(name, role, right or 0, record.samples or 1) for name, role, right in told]
    return accuracy_chart(rows, f"Accuracy of {record.model} before and after pruning")


def _letters(number: int) -> list[str]:
    """Names of groups: A to Z, then numbers.

    >>> _letters(2), _letters(28)[-2:]
    (['A', 'B'], ['27', '28'])
    """
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(number)]


def _tags(record: PruningRecord) -> dict[str, str]:
    letters = _letters(len(record.groups))
    return {
        layer: tag
        for tag, group in zip(letters, record.groups, strict=True)
        for layer in group.layers
    }


def _widths(record: PruningRecord, tags: dict[str, str]) -> Chart:
    """Output channels before and after, in the order of the net."""
    rows = []
    for layer in record.layers:
        before, after = layer.before[1], layer.after[1]
        tag = tags.get(layer.name, "")
        spoken = f"{before} to {after}" + (f", group {tag}" if tag else "")
        marks = [Mark("wide before", 0, before), Mark("wide after", 0, after)]
        shown = change((before, after))
        rows.append(Row(layer.name, marks, shown, typeset(layer.what), tag=tag, spoken=spoken))
    axis = Axis(nice_ticks(max(max(r.before[1], r.after[1]) for r in record.layers)), "channels")
    legend = [(f"wide {when}", when) for when in _PAIR]
    legend += [("tag-of", "layers with one letter lose channels together")] if tags else []
    summary = f"Output channels of each layer of {record.model}, before and after"
    return Chart(
        summary, axis, rows, "widths", layers=True, legend=legend, most=_MOST, more="more layers"
    )


def _layers(record: PruningRecord) -> Table:
    columns = [
        Column("Layer", kind="code"), Column("What"),
        *(Column(side, change, "channels", _PAIR) for side in ("In", "Out")),
    ]  # fmt: skip
    lines = [
        Line(each.name, [typeset(each.what), *zip(each.before, each.after, strict=True)])
        for each in record.layers
    ]
    name = f"Channels of {record.model}"
    return Table(name, "Channels in and out of each layer", columns, lines)


def _more_tables(record: PruningRecord) -> dict[str, Table]:
    """What is tied, what was left alone, what was tried: each where there is something."""
    tied = [
        Line(tag, [", ".join(group.layers), (group.before, group.after)])
        for tag, group in zip(_letters(len(record.groups)), record.groups, strict=True)
    ]
    kept = [Line(each.where, [each.why]) for each in record.kept]
    tried = [_trial(record, number) for number in range(len(record.trials))]
    of_net = f"of {record.model}"
    found = {
        "groups": Table(
            f"Layers {of_net} that lose channels together",
            "The price of additions: layers that write the same channels",
            [Column("Group", kind="tag-of"), Column("Layers", kind="code"),
                Column("Channels", change, "channels", _PAIR)],
            tied,
        ),
        "kept": Table(
            f"Layers {of_net} left alone",
            "Outputs left alone, with the reason",
            [Column("Layer", kind="code"), Column("Why")],
            kept,
        ),
        "trials": Table(
            f"What the search for {record.model} tried",
            "What the search tried, in this order",
            [
                Column("Trial"), Column("Multiply-adds left", "{:.3f}".format, "share"),
                Column("Latency", milliseconds, "ms"),
                Column("Of before (quartiles)", _of_before, "share", ("median", "low", "high")),
            ],
            tried,
            sortable=False,
        ),
    }  # fmt: skip
    return {name: table for name, table in found.items() if table.lines}


def _trial(record: PruningRecord, index: int) -> Line:
    trial = record.trials[index]
    timed = trial.latency
    times = [1e3 * timed.after, (timed.ratio, *timed.quartiles)] if timed else [None, None]
    return Line(str(index + 1), [trial.multiply_adds / record.multiply_adds_before, *times])


def _of_before(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} ({span(found[1:])})"
