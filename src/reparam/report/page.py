"""The page: stored results in, one self-contained HTML file out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reparam._support import files
from reparam._support.optional import require
from reparam._support.statistics import quartiles
from reparam.report import sentences
from reparam.report._csv import to_csv
from reparam.report._markup import typeset
from reparam.report.blocks import sections
from reparam.report.charts import Bar, bar_chart
from reparam.report.diagram import block_diagram
from reparam.report.engines import on_one_scale
from reparam.report.int8 import int8_section
from reparam.report.loading import Source, load_results
from reparam.report.numbers import kibibytes, milliseconds, percent, wilson_interval
from reparam.report.plan import plan_section
from reparam.report.pruned import pruned_section
from reparam.report.results import (
    AccuracyRecord,
    LatencyRecord,
    MemoryRecord,
    Results,
    TraceRecord,
)
from reparam.report.sections import conditions, engines_section, tradeoff_section
from reparam.report.timelines import Timeline, timelines
from reparam.report.tradeoff import tradeoffs
from reparam.report.twins import twins_section

__all__ = ["page_html", "render"]

_KIB = 1024


def render(results: Source, out: str | Path) -> Path:
    """Write the page of stored results; nothing is measured, nothing is fetched.

    Args:
        results: a :class:`Results`, its JSON object, or the path of a ``results.json``.
        out: the HTML file to write (whole or not at all).

    Returns:
        The path of the page.

    Raises:
        InputError: `results` is not a results file, or `out` cannot be written.
        MissingExtraError: jinja2 is not installed.
    """
    path = Path(out)
    files.write_text(path, page_html(load_results(results)))
    return path


def page_html(results: Results) -> str:
    """The page as text: styles, script, drawings and numbers inlined.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", extra="report", purpose="Drawing the report page")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    html = template.render(**_context(results), style=_asset("style.css"), script=_asset("page.js"))
    return f"{html}\n"


def _asset(name: str) -> str:
    return (resources.files("reparam.report") / "assets" / name).read_text(encoding="utf-8")


def _context(results: Results) -> dict[str, Any]:
    phrases = sentences.headline(results)
    return {
        "results": results,
        "phrases": phrases,
        "headline": "".join(phrase.text for phrase in phrases),
        "further": sentences.further(results),
        "figures": sentences.figures(results),
        "data_line": _data_line(results),
        "diagram": block_diagram(results.block) if results.block else None,
        "block_caption": typeset(results.block.caption) if results.block else "",
        "accuracy": _accuracy(results) if results.accuracy else None,
        "twins": twins_section(results.twins) if results.twins else None,
        "latency": [_latency(results, group) for group in results.latency if group.rows],
        "tradeoffs": [tradeoff_section(compared) for compared in tradeoffs(results)],
        "engines": [engines_section(results, group) for group in results.benchmarks if group.rows],
        "int8": [int8_section(record) for record in results.quantizations],
        "pruning": [pruned_section(record) for record in results.prunings],
        "memory": [_memory(results, memory) for memory in results.memory if memory.traces],
        "plan": plan_section(results.plan) if results.plan else None,
        "sections": sections(results),
        "csv": quote(to_csv(results)),
        "csv_name": "reparam-results.csv",
    }


def _data_line(results: Results) -> str:
    if results.data is None:
        return ""
    data = results.data
    size = "×".join(str(length) for length in data.shape)
    return (
        f"Trained on {data.train:,} and tested on {data.test:,} images of {data.name} "
        f"({data.classes} classes, {size})."
    )


def _accuracy(results: Results) -> dict[str, Any]:
    order = [model.key for model in results.models]
    listed = sorted(results.accuracy, key=lambda record: order.index(record.model))
    bars = [_accuracy_bar(results, record) for record in listed]
    judged_on = " and ".join(dict.fromkeys(record.on for record in listed))
    return {
        "chart": bar_chart(
            bars, unit="% correct", summary=f"Top-1 accuracy on the {judged_on}", maximum=100
        ),
        "remarks": sentences.accuracy_remarks(results),
        "agreement": [
            {
                "pair": f"{results.model(row.candidate).label} and "
                f"{results.model(row.reference).label}",
                "engine": row.engine,
                "equal": f"{row.agree:,} of {row.total:,}",
            }
            for row in results.agreement
        ],
        "training": _training_line(results),
    }


def _accuracy_bar(results: Results, record: AccuracyRecord) -> Bar:
    model = results.model(record.model)
    low, high = wilson_interval(record.correct, record.total)
    return Bar(
        label=model.label,
        detail="" if record.engine == "eager" else record.engine,
        role=model.role,
        value=100 * record.correct / record.total,
        low=100 * low,
        high=100 * high,
        shown=percent(record.correct / record.total),
        solid=record.engine == "eager",
    )


def _training_line(results: Results) -> str:
    parts = [
        f"{results.model(record.model).label}: {record.epochs} epochs in {record.seconds:.0f} s"
        for record in results.training
    ]
    return f"Training: {'; '.join(parts)}." if parts else ""


def _latency(results: Results, group: LatencyRecord) -> dict[str, Any]:
    charts = [
        bar_chart(
            _latency_bars(results, group, engines),
            unit="ms a call",
            summary=f"Latency, {group.title}, {' and '.join(engines)}",
        )
        for engines in on_one_scale(group)
    ]
    return {
        "title": group.title,
        "conditions": conditions(group),
        "chart": "".join(charts),
        "remarks": sentences.latency_remarks(results, group),
        "note": group.note,
    }


def _latency_bars(results: Results, group: LatencyRecord, engines: Sequence[str]) -> list[Bar]:
    bars = []
    rows = [row for row in group.rows if row.engine in engines]
    for row in sorted(rows, key=lambda row: engines.index(row.engine)):
        model, middle = results.model(row.model), quartiles(row.samples_ms)
        bars.append(
            Bar(
                label=model.label,
                detail=row.engine,
                role=model.role,
                value=middle.median,
                low=middle.q1,
                high=middle.q3,
                shown=milliseconds(middle.median),
                solid=row.engine == "eager",
            )
        )
    return bars


def _memory(results: Results, memory: MemoryRecord) -> dict[str, Any]:
    panels = [_timeline(results, trace) for trace in memory.traces]
    return {
        "title": memory.title,
        "conditions": f"Input {_shape(memory.input_shape)}, {kibibytes(memory.input_bytes)}.",
        "peaks": _peaks(memory),
        "chart": timelines(panels, unit="KiB alive", summary=memory.title),
        "note": memory.note,
        "remarks": sentences.memory_remarks(results, memory),
        "traces": [
            {
                "label": trace.label,
                "steps": [
                    (name, kibibytes(live))
                    for name, live in zip(trace.operators, trace.live_bytes, strict=True)
                ],
            }
            for trace in memory.traces
        ],
    }


def _peaks(memory: MemoryRecord) -> list[dict[str, str]]:
    """Counted and predicted peaks side by side, where a prediction was made."""
    return [
        {
            "label": trace.label,
            "peak": kibibytes(trace.peak_bytes),
            "sort": str(trace.peak_bytes),
            "counted": f"{trace.peak_bytes / memory.input_bytes:.3g}×",
            "predicted": f"{trace.predicted_bytes / memory.input_bytes:.3g}×",
        }
        for trace in memory.traces
        if trace.predicted_bytes is not None
    ]


def _timeline(results: Results, trace: TraceRecord) -> Timeline:
    return Timeline(
        label=trace.label,
        role=results.role_of(trace),
        steps=trace.operators,
        values=tuple(live / _KIB for live in trace.live_bytes),
        shown=tuple(kibibytes(live) for live in trace.live_bytes),
        peak_shown=kibibytes(trace.peak_bytes),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(str(length) for length in shape)
