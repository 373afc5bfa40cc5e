"""What the page shows of benchmarks: the trade-off, and the engines beside one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reparam._support.statistics import quartiles
from reparam.report.charts import Bar, DotRow, bar_chart, dot_chart
from reparam.report.engines import engine_remarks, fastest_engine, form_remarks, on_one_scale
from reparam.report.numbers import count, milliseconds, significant
from reparam.report.published import REPARAMETERIZED_FAMILIES
from reparam.report.scatter import Mark, scatter
from reparam.report.tradeoff import FAR_BETTER, in_engine, ratio_cell, short_label, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam._support.statistics import Quartiles
    from reparam.report.results import LatencyRecord, ModelRecord, Results
    from reparam.report.tradeoff import Duel, Point, Tradeoff

__all__ = ["conditions", "engines_section", "tradeoff_section"]


def conditions(group: LatencyRecord) -> str:
    """Shape, type, threads and rounds, which decide what may be compared with what."""
    size = "×".join(str(length) for length in group.input_shape)
    rounds = min(len(row.samples_ms) for row in group.rows)
    return (
        f"Input {size}, {group.dtype}, {_plural(group.threads, 'thread')}, "
        f"{_plural(rounds, 'round')}."
    )


def tradeoff_section(compared: Tradeoff) -> dict[str, Any]:
    """A drawing and a verdict for each engine, and all ratios in one table."""
    families = dict.fromkeys(p.model.family for ps in compared.points.values() for p in ps)
    return {
        "title": compared.group.title,
        "conditions": conditions(compared.group),
        "note": compared.group.note,
        "sources": compared.sources,
        "far_better": f"{FAR_BETTER:g}",
        "families": [{"name": family, "tone": _tone(family)} for family in families],
        "choices": [
            {
                "engine": engine,
                "verdict": verdict(compared, engine),
                "chart": scatter(
                    [_mark(point, compared.points[engine]) for point in compared.points[engine]],
                    x_title="ms a call, measured here; further left is faster",
                    y_title="ImageNet top-1 in %, published",
                    summary=f"Published accuracy against latency in {in_engine(engine)}",
                ),
                "rows": _met(compared, engine),
            }
            for engine in compared.engines
        ],
        "meeting": list(dict.fromkeys(mine.family for mine, _ in compared.pairs)),
        "nets": [
            {
                "name": short_label(model),
                "top1": f"{model.published_top1:.2f}",
                "recipe": model.published_recipe,
                "source": model.published_in,
            }
            for model in _nets(compared)
        ],
    }


def _nets(compared: Tradeoff) -> list[ModelRecord]:
    """Every net that is drawn, the least accurate first."""
    found = {p.model.key: p.model for points in compared.points.values() for p in points}
    return sorted(found.values(), key=lambda model: model.published_top1 or 0.0)


def _met(compared: Tradeoff, engine: str) -> list[dict[str, Any]]:
    """One row for each other net: what each family's equal member gains over it."""
    families = dict.fromkeys(mine.family for mine, _ in compared.pairs)
    rows: dict[str, dict[str, Any]] = {}
    for duel in compared.duels_in(engine):
        name = f"{short_label(duel.other)} ({duel.other.published_top1:.1f} %)"
        row = rows.setdefault(
            duel.other.key, {"name": name, "cells": dict.fromkeys(families, _NONE)}
        )
        row["cells"][duel.mine.family] = _ratio(duel)
    return [row | {"cells": list(row["cells"].values())} for row in rows.values()]


def _tone(family: str) -> str:
    if family == "RepVGG":
        return "deploy"
    return "train" if family in REPARAMETERIZED_FAMILIES else "comparator"


def _mark(point: Point, points: Sequence[Point]) -> Mark:
    model, time = point.model, point.latency
    label, prefix = short_label(model), f"{model.family}-"
    short = label.startswith(prefix)
    costs = [
        f"{count(number)} {what}"
        for number, what in ((model.parameters, "parameters"), (model.multiply_adds, "MACs"))
        if number is not None
    ]
    return Mark(
        prefix=prefix if short else "",
        name=label.removeprefix(prefix) if short else label,
        tone=_tone(model.family),
        x=time.median,
        low=time.q1,
        high=time.q3,
        y=point.top1,
        facts=(
            f"{point.top1:.2f} % published",
            *([model.published_recipe] if model.published_recipe else []),
            f"{milliseconds(time.median)} ({significant(time.q1)} to {significant(time.q3)})",
            *([", ".join(costs)] if costs else []),
            _standing(point, points),
        ),
        strong=point.front,
        hollow=model.published_longer,
    )


def _standing(point: Point, points: Sequence[Point]) -> str:
    if point.front:
        return "on the Pareto front"
    better = next(
        p for p in points if p.top1 >= point.top1 and p.latency.median <= point.latency.median
    )
    return f"beaten by {short_label(better.model)}"


_NONE = {"net": "", "shown": "–", "sort": "", "kind": ""}
"""The cell of a family without a member of equal accuracy."""


def _ratio(duel: Duel) -> dict[str, str]:
    result = duel.result
    kind = "ok" if result.wins else "bad" if result.loses else ""
    return {
        "net": short_label(duel.mine),
        "shown": ratio_cell(result),
        "sort": repr(result.factor),
        "kind": kind,
    }


def engines_section(results: Results, group: LatencyRecord) -> dict[str, Any]:
    """Each model in every engine: the drawing, what follows from it, and the numbers."""
    engines = list(dict.fromkeys(row.engine for row in group.rows))
    models = [results.model(key) for key in dict.fromkeys(row.model for row in group.rows)]
    times = {(row.model, row.engine): quartiles(row.samples_ms) for row in group.rows}
    return {
        "title": group.title,
        "conditions": conditions(group),
        "chart": "".join(_chart(group.title, models, each, times) for each in on_one_scale(group)),
        "several": len(engines) > 1,
        "remarks": [*engine_remarks(group), *form_remarks(results, group)],
        "note": group.note,
        "rows": [
            {
                "label": model.label,
                "role": model.role,
                "engine": engine,
                "fastest": len(engines) > 1 and engine == fastest_engine(group, model.key),
                "cells": [
                    _number(time.median),
                    _number(time.q1),
                    _number(time.q3),
                    _number(1e3 * group.input_shape[0] / time.median),
                ],
            }
            for model in models
            for engine in engines
            if (time := times.get((model.key, engine))) is not None
        ],
    }


def _chart(
    title: str,
    models: Sequence[ModelRecord],
    engines: Sequence[str],
    times: dict[tuple[str, str], Quartiles],
) -> str:
    if len(engines) == 1:
        timed = ((model, times.get((model.key, engines[0]))) for model in models)
        found = [(model, time) for model, time in timed if time is not None]
        bars = [
            Bar(m.label, engines[0], m.role, t.median, t.q1, t.q3, milliseconds(t.median))
            for m, t in found
        ]
        return bar_chart(bars, unit="ms a call", summary=f"Latency, {title}, {engines[0]}")
    rows = []
    for model in models:
        found_times = (times.get((model.key, engine)) for engine in engines)
        values = tuple(None if time is None else time.median for time in found_times)
        rows.append(DotRow(model.label, model.role, values))
    return dot_chart(rows, engines, summary=f"Latency in each engine, {title}")


def _number(value: float) -> dict[str, str]:
    return {"shown": significant(value), "sort": repr(value)}


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
