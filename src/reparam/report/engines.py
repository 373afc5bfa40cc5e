"""The engines beside one another: who is the fastest for what, and what folding brings where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam._support.statistics import quartiles
from reparam.report.numbers import ratio
from reparam.report.paired import paired
from reparam.report.tradeoff import Duel, form_duels, in_engine, short_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.report.results import LatencyRecord, Results

__all__ = ["engine_remarks", "fastest_engine", "form_remarks", "on_one_scale"]

_ONE_SCALE = 6.0
"""Engines whose longest times differ by more than this are drawn apart."""


def fastest_engine(group: LatencyRecord, model: str) -> str:
    """The engine with the least median time for one model."""
    rows = [row for row in group.rows if row.model == model]
    return min(rows, key=lambda row: quartiles(row.samples_ms).median).engine


def on_one_scale(group: LatencyRecord) -> list[list[str]]:
    """The engines of a group, put together as far as one axis shows the times of all.

    On the axis of an engine that takes ten times as long, nobody can tell the times of a fast one
    apart.
    """
    engines = dict.fromkeys(row.engine for row in group.rows)
    longest = {
        engine: max(quartiles(r.samples_ms).median for r in group.rows if r.engine == engine)
        for engine in engines
    }
    together: list[list[str]] = []
    for engine in sorted(engines, key=longest.__getitem__):
        if together and longest[engine] <= _ONE_SCALE * longest[together[-1][0]]:
            together[-1].append(engine)
        else:
            together.append([engine])
    return [[engine for engine in engines if engine in each] for each in together]


def engine_remarks(group: LatencyRecord) -> list[str]:
    """For how many models each engine is the fastest, and by how much over eager PyTorch."""
    engines = dict.fromkeys(row.engine for row in group.rows)
    if len(engines) < 2:
        return []
    models = list(dict.fromkeys(row.model for row in group.rows))
    times = {(row.model, row.engine): row.samples_ms for row in group.rows}
    winners = [fastest_engine(group, model) for model in models]
    remarks = []
    for engine in sorted(set(winners), key=lambda name: (-winners.count(name), name)):
        won = [m for m, winner in zip(models, winners, strict=True) if winner == engine]
        share = "every model" if len(won) == len(models) else f"{len(won)} of {len(models)} models"
        over = [
            paired(times[m, "eager"], times[m, engine]).factor for m in won if (m, "eager") in times
        ]
        gain = f", {_range(over)} as fast as eager PyTorch" if over and engine != "eager" else ""
        remarks.append(f"{in_engine(engine)[:1].upper()}{in_engine(engine)[1:]} has the least "
                       f"median time for {share}{gain}.")  # fmt: skip
    return remarks


def form_remarks(results: Results, group: LatencyRecord) -> list[str]:
    """What the deploy form gains over the train form, one sentence an engine."""
    duels = form_duels(results, group)
    engines = dict.fromkeys(duel.engine for duel in duels)
    return [_form_remark(engine, [d for d in duels if d.engine == engine]) for engine in engines]


def _form_remark(engine: str, duels: Sequence[Duel]) -> str:
    told = "; ".join(f"{short_label(duel.mine)} {duel.result}" for duel in duels)
    return f"In {in_engine(engine)} the deploy form against the train form: {told}."


def _range(factors: Sequence[float]) -> str:
    low, high = min(factors), max(factors)
    same = ratio(low) == ratio(high)
    return ratio(low) if same else f"{ratio(low)} to {ratio(high)}"
