"""What a page shows of a net with fewer channels: drawings, what follows from them, and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reparam.report._markup import typeset
from reparam.report.benchmarks import engine_label
from reparam.report.charts import Bar, WidthRow, bar_chart, width_chart
from reparam.report.numbers import count, milliseconds, percent, wilson_interval
from reparam.report.phrases import points, span
from reparam.report.pruned_sentences import lost, macs_left, parameters_left, target_verdict

if TYPE_CHECKING:
    from reparam.lab.pruning.result import LatencyChange
    from reparam.report.compressed import PruningRecord

__all__ = ["pruned_section"]

_MOST_ROWS = 40
_NEAR = 0.03
"""Shares that differ by no more are called equal."""

_BEFORE, _AFTER = "comparator", "deploy"


def pruned_section(record: PruningRecord) -> dict[str, Any]:
    """The drawings, what follows from them, and the numbers of one net."""
    tags = _tags(record)
    return {
        "title": f"{record.model}, pruned to {record.target}",
        "conditions": _conditions(record),
        "remarks": _remarks(record),
        "shares": _share_chart(record),
        "timed": record.latency is not None,
        "accuracy": _accuracy_chart(record),
        "widths": width_chart(
            [
                WidthRow(
                    layer.name,
                    typeset(layer.what),
                    layer.before[1],
                    layer.after[1],
                    tags.get(layer.name, ""),
                )
                for layer in record.layers
            ],
            summary=f"Output channels of each layer of {record.model}, before and after",
            most=_MOST_ROWS,
        ),
        "layers": [
            {
                "name": layer.name,
                "what": typeset(layer.what),
                "inputs": _change(layer.before[0], layer.after[0]),
                "outputs": _change(layer.before[1], layer.after[1]),
                "tag": tags.get(layer.name, ""),
            }
            for layer in record.layers
        ],
        "tied": _tied(record),
        "groups": [
            {
                "tag": tag,
                "layers": group.layers,
                "cell": _change(group.before, group.after),
            }
            for tag, group in zip(_letters(len(record.groups)), record.groups, strict=True)
        ],
        "kept": record.kept,
        "trials": [_trial(record, index) for index in range(len(record.trials))],
        "row": _overview(record),
    }


def _conditions(record: PruningRecord) -> str:
    told = [f"Importance of a channel: {record.importance}."]
    if record.latency is not None:
        timed = record.latency
        threads = (
            "the engine's own number of threads"
            if timed.threads is None
            else (f"{timed.threads} thread{'' if timed.threads == 1 else 's'}")
        )
        told.append(f"Latency: {engine_label(timed.engine)}, batch {timed.batch}, {threads}.")
    if record.samples:
        told.append(f"Judged on {record.samples:,} {record.judged_on or 'samples'}.")
    return " ".join([*told, f"File: {record.file}."] if record.file else told)


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


def _remarks(record: PruningRecord) -> list[str]:
    told = []
    if verdict := target_verdict(record):
        told.append(verdict[0])
    narrower = sum(layer.before[1] != layer.after[1] for layer in record.layers)
    told.append(f"{narrower} of {len(record.layers)} layers have fewer output channels.")
    told += _latency_remarks(record)
    told.append(_accuracy_remark(record))
    if record.solved:
        solved = len(record.solved)
        told.append(f"{solved} layers were solved anew on data for what they gave before.")
    elif lost(record) is not None:
        told.append("No layer was solved anew on data for what it gave before (--reconstruct).")
    return told


def _latency_remarks(record: PruningRecord) -> list[str]:
    timed = record.latency
    if timed is None:
        return ["Latency was not measured; fewer multiply-adds need not be as much less time."]
    if not timed.clear:
        return [f"In {engine_label(timed.engine)} neither net is clearly faster in this run."]
    if timed.ratio > macs_left(record) + _NEAR:
        shares = f"{timed.ratio:.2f} against {macs_left(record):.2f} of before"
        engine = engine_label(timed.engine)
        return [f"The latency in {engine} fell less than the multiply-adds: {shares}."]
    return []


def _accuracy_remark(record: PruningRecord) -> str:
    drop = lost(record)
    if drop is None:
        return "Accuracy was not judged: no data were given (--data)."
    return (
        f"Of {record.samples:,} samples the net got {record.correct_before:,} right before and "
        f"gets {record.correct_after:,} now: {points(drop)}, before any training on."
    )


def _share_chart(record: PruningRecord) -> str:
    bars = [
        _share_bar(
            "Multiply-adds",
            f"{count(record.multiply_adds_before)} → {count(record.multiply_adds_after)}",
            macs_left(record),
            record.macs_share,
        ),
        _share_bar(
            "Parameters",
            f"{count(record.parameters_before)} → {count(record.parameters_after)}",
            parameters_left(record),
        ),
    ]
    if record.latency is not None:
        bars.append(_latency_bar(record, record.latency))
    largest = max(bar.high for bar in bars)
    summary = f"What is left of {record.model}, as shares of before"
    return bar_chart(bars, unit="of before", summary=summary, maximum=max(1.0, largest))


def _share_bar(label: str, detail: str, value: float, goal: float | None = None) -> Bar:
    return Bar(label, detail, _AFTER, value, value, value, f"{value:.2f}", goal=goal)


def _latency_bar(record: PruningRecord, timed: LatencyChange) -> Bar:
    goal = record.latency_share
    if record.latency_ms is not None:
        goal = record.latency_ms / (1e3 * timed.before)
    times = f"{milliseconds(1e3 * timed.before)} → {milliseconds(1e3 * timed.after)}"
    shown = f"{timed.ratio:.2f}"
    return Bar("Latency", times, _AFTER, timed.ratio, *timed.quartiles, shown, goal=goal)


def _accuracy_chart(record: PruningRecord) -> str:
    before, after = record.correct_before, record.correct_after
    if before is None or after is None or not record.samples:
        return ""
    bars = []
    for label, role, correct in (("Before", _BEFORE, before), ("Pruned", _AFTER, after)):
        low, high = (100 * limit for limit in wilson_interval(correct, record.samples))
        share = correct / record.samples
        bars.append(Bar(label, "", role, 100 * share, low, high, percent(share)))
    summary = f"Accuracy of {record.model} before and after pruning"
    return bar_chart(bars, unit="% correct", summary=summary, maximum=100)


def _tied(record: PruningRecord) -> str:
    """The price of additions, or that there are none."""
    if not record.groups:
        return (
            "No two layers write the same channels: nothing is added on a single path, and each "
            "layer loses what it needs least."
        )
    tied = sum(len(group.layers) for group in record.groups)
    return (
        f"{tied} of {len(record.layers)} layers write channels that others write too, as their "
        f"outputs are added: they can lose only what all of their group can spare."
    )


def _change(before: int, after: int) -> dict[str, str]:
    shown = f"{before:,} → {after:,}" if before != after else f"{after:,}"
    return {"shown": shown, "sort": str(before)}


def _trial(record: PruningRecord, index: int) -> dict[str, Any]:
    trial = record.trials[index]
    timed = trial.latency
    return {
        "number": index + 1,
        "macs": f"{trial.multiply_adds / record.multiply_adds_before:.3f}",
        "time": milliseconds(1e3 * timed.after) if timed else "–",
        "ratio": f"{timed.ratio:.2f} ({span(timed.quartiles)})" if timed else "–",
    }


def _overview(record: PruningRecord) -> dict[str, Any]:
    """One line of the table of several nets."""
    drop, timed = lost(record), record.latency
    tied = sum(len(group.layers) for group in record.groups)
    samples = record.samples or 1
    judged = drop is not None
    return {
        "model": record.model,
        "cells": [
            {"shown": f"{macs_left(record):.2f}", "sort": repr(macs_left(record))},
            {"shown": f"{parameters_left(record):.2f}", "sort": repr(parameters_left(record))},
            {
                "shown": f"{timed.ratio:.2f}" if timed else "–",
                "sort": repr(timed.ratio if timed else 0),
            },
            {
                "shown": percent((record.correct_after or 0) / samples) if judged else "–",
                "sort": repr(record.correct_after or 0),
            },
            {"shown": f"{drop:.2f}" if drop is not None else "–", "sort": repr(drop or 0.0)},
            {"shown": f"{tied} of {len(record.layers)}", "sort": str(tied)},
        ],
    }
