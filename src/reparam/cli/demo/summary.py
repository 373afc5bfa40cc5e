"""The end of the story as one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam._support.statistics import quartiles
from reparam.report.numbers import count, kibibytes, milliseconds, percent

if TYPE_CHECKING:
    from reparam.report.results import ModelRecord, Results


def caption(results: Results) -> str:
    """What the columns of the table mean."""
    batch = results.latency[0].input_shape[0] if results.latency else 0
    return f"{batch} images a call; memory is the peak of activations in one block:"


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: one line a trained net, with what was counted and measured of it."""
    columns = ["", "convs", "params", "accuracy", "eager", "ONNX RT", "memory"]
    trained = {record.model for record in results.accuracy}
    rows = [_row(results, model) for model in results.models if model.key in trained]
    return columns, rows


def _row(results: Results, model: ModelRecord) -> list[str]:
    return [
        model.label,
        count(model.convolutions),
        count(model.parameters),
        _accuracy(results, model.key),
        _latency(results, model.key, "eager"),
        _latency(results, model.key, "ONNX Runtime"),
        _memory(results, model.key),
    ]


def _accuracy(results: Results, key: str) -> str:
    found = next(r for r in results.accuracy if r.model == key)
    return percent(found.correct / found.total)


def _latency(results: Results, key: str, engine: str) -> str:
    for row in results.latency[0].rows if results.latency else ():
        if (row.model, row.engine) == (key, engine):
            return milliseconds(quartiles(row.samples_ms).median)
    return "-"


def _memory(results: Results, key: str) -> str:
    for trace in results.memory[0].traces if results.memory else ():
        if trace.model == key:
            return kibibytes(trace.peak_bytes)
    return "-"
