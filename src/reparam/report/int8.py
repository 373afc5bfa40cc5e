"""What the page shows of nets in eight bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from reparam.report.marks import Axis, Chart, Mark, Row, accuracy_chart, bar, bar_chart, share_bar
from reparam.report.numbers import (
    NOTHING,
    decibels,
    kibibytes,
    noise_share,
    of,
    percent,
    plain,
    typeset,
)
from reparam.report.sections import Part, section
from reparam.report.tables import Column, Line, Table

if TYPE_CHECKING:
    from reparam.report.compressed import QuantizationRecord
    from reparam.report.results import Results

HARMLESS = 0.5
"""Points of accuracy that quantization usually costs."""

_MOST = 24
"""Layers that are drawn at once; the others unfold."""

_LEAST, _GREATEST = -20.0, 100.0
"""Decibels that a ranking reaches; marks beyond stand at its ends, with their numbers beside."""


def points_lost(record: QuantizationRecord) -> float | None:
    """Points of accuracy lost; where no classes are known, of agreement; None for neither."""
    if record.correct_float is not None and record.correct is not None:
        return 100 * (record.correct_float - record.correct) / record.samples
    if record.agree is None:
        return None
    return 100 * (1 - record.agree / record.samples)


@section("int8", "Eight bits")
def _int8(results: Results) -> Iterable[Part]:
    if results.quantizations:
        yield Part(tables={"overview": _overview(results.quantizations)})
    for record in results.quantizations:
        charts = {"size": _sizes(record)}
        if record.correct is not None and record.correct_float is not None:
            charts["accuracy"] = _accuracy(record)
        tables = {}
        ordered = sorted(record.layers, key=lambda layer: layer.output_db)
        if ordered:
            charts["layers"] = _ranking(record)
            tables["layers"] = _layers(record)
        if record.equalised:
            tables["equalised"] = _equalised(record)
        facts = {"ordered": ordered, "long": len(ordered) > _MOST}
        yield Part(record, charts, tables, facts)


def _overview(records: Sequence[QuantizationRecord]) -> Table:
    judged = ("right", "of")
    columns = [
        Column("Net"), Column("Samples", plain, "samples"),
        Column("Float", _counted, "samples", judged),
        Column("Eight bits", _counted, "samples", judged),
        Column("Points lost", "{:.2f}".format),
        Column("Same class", _counted, "samples", ("same", "of")),
        Column("Signal to noise", _noise, "dB"),
        Column("Layers", of, "layers", ("layers", "of")),
        Column("Size", _sizes_told, "bytes", ("float parameters", "file")),
    ]  # fmt: skip
    lines = [
        Line(
            f"{r.model} in {r.engine}",
            [
                r.samples,
                None if r.correct_float is None else (r.correct_float, r.samples),
                None if r.correct is None else (r.correct, r.samples),
                points_lost(r),
                None if r.agree is None else (r.agree, r.samples),
                r.output_db,
                (len(r.quantized), len(r.quantized) + len(r.kept_float)),
                (r.float_bytes, r.size_bytes),
            ],
        )
        for r in records
    ]
    caption = (
        "Float beside eight bits on the same samples, in the engine; points lost are below zero "
        "where accuracy was gained; noise is told as an error of the output, too; layers are those "
        "in eight bits"
    )
    return Table("Nets in eight bits", caption, columns, lines)


def _counted(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,} ({percent(pair[0] / pair[1])})"


def _noise(value: float) -> str:
    return decibels(value) if value >= NOTHING else f"{decibels(value)} ({noise_share(value)})"


def _sizes_told(pair: tuple[int, int]) -> str:
    return f"{kibibytes(pair[0])} → {kibibytes(pair[1])}"


def _accuracy(record: QuantizationRecord) -> Chart:
    rows = [
        share_bar(
            "Float", "comparator", record.correct_float or 0, record.samples, detail="PyTorch"
        ),
        share_bar(
            "Eight bits", "deploy", record.correct or 0, record.samples, detail=record.engine
        ),
    ]
    return accuracy_chart(rows, f"Accuracy of {record.model} in float and in eight bits")


def _sizes(record: QuantizationRecord) -> Chart:
    told = (
        ("Float", "parameters", "comparator", record.float_bytes),
        ("Eight bits", "the whole file", "deploy", record.size_bytes),
    )
    rows = [
        Row(label, bar(size / 1024), kibibytes(size), detail, role)
        for label, detail, role, size in told
    ]
    return bar_chart(rows, unit="KiB", summary=f"Size of {record.model}")


def _ranking(record: QuantizationRecord) -> Chart:
    """The layers by what each costs if it alone is rounded; further left is worse."""
    lines = [("across solid", record.output_db, f"the file in {record.engine}")]
    if record.simulated_db is not None:
        how = " without corrected biases" if record.bias_corrected else ""
        lines.append(("across dashed", record.simulated_db, f"all layers at once, simulated{how}"))
    across = [Mark("rule", -math.inf, math.inf), *(Mark(kind, at) for kind, at, _ in lines)]
    rows = []
    for layer in sorted(record.layers, key=lambda layer: layer.output_db):
        kept, shown = layer.name in record.kept_float, decibels(layer.output_db)
        # Shape and tone differ, for not everybody sees the tone.
        shape, tone = ("ring", "comparator") if kept else ("disc", "deploy")
        marks = [*across, Mark(f"dotmark {shape}", layer.output_db)]
        rows.append(Row(layer.name, marks, shown, typeset(layer.what), tone, spoken=shown))
    axis = Axis(
        decibel_ticks([*(m.output_db for m in record.layers), *(v for _, v, _ in lines)]), "dB"
    )
    legend = [("dotmark disc role-deploy", "in eight bits")]
    legend += [("dotmark ring role-comparator", "left in float")] if record.kept_float else []
    legend += [(kind.replace("across", "stroke"), name) for kind, _, name in lines]
    summary = "Signal to noise at the output if one layer alone is rounded, worst first"
    also = [f"{name}: {value:.1f} dB" for _, value, name in lines]
    return Chart(
        summary, axis, rows, "ranks", layers=True, legend=legend, also=also, most=_MOST,
        more="more layers, which hurt less",
    )  # fmt: skip


def decibel_ticks(values: Sequence[float]) -> list[float]:
    """Round values around all of `values`, as far as a drawing of them goes.

    >>> decibel_ticks([31.0, 33.2, 47.9])
    [30.0, 35.0, 40.0, 45.0, 50.0]
    >>> decibel_ticks([12.0, 200.0])
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    held = [min(max(value, _LEAST), _GREATEST) for value in values]
    reach = max(held) - min(held)
    step = 5.0 if reach <= 25 else 10.0 if reach <= 50 else 20.0
    low = math.floor(min(held) / step)
    high = max(math.ceil(max(held) / step), low + 1)
    return [step * index for index in range(low, high + 1)]


def _layers(record: QuantizationRecord) -> Table:
    ends = ("low", "high")
    columns = [
        Column("Layer", kind="code"),
        Column("Weights", _range, "", ends), Column("Reads", _range, "", ends),
        *(Column(title, "{:.1f}×".format, "times") for title in ("Weight spread", "Spread")),
        *(Column(title, _ratio, "dB") for title in ("Weight dB", "Input dB", "Output dB")),
    ]  # fmt: skip
    flips = any(layer.flips is not None for layer in record.layers)
    columns += [Column("Change class", percent, "share")] if flips else []
    columns += [Column("Stored in")] if record.kept_float else []
    lines = []
    for layer in sorted(record.layers, key=lambda layer: layer.output_db):
        cells: list[Any] = [
            (layer.weight_low, layer.weight_high), (layer.input_low, layer.input_high),
            layer.weight_spread, layer.input_spread,
            layer.weight_db, layer.input_db, layer.output_db, *([layer.flips] if flips else []),
        ]  # fmt: skip
        if record.kept_float:
            cells.append("float" if layer.name in record.kept_float else "eight bits")
        lines.append(Line(layer.name, cells, remark=typeset(layer.what)))
    caption = (
        "Each layer rounded alone: ranges of its equivalent kernel and of what it reads; the "
        "spread is the widest channel over the median one, which share a step"
    )
    name = f"Layers of {record.model} in {record.engine}"
    return Table(name, caption, columns, lines)


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.2f} to {ends[1]:.2f}"


def _ratio(value: float) -> str:
    return "exact" if value >= NOTHING else f"{value:.1f}"


def _equalised(record: QuantizationRecord) -> Table:
    spread = "{:.2f}×".format
    columns = [
        Column("From", kind="code"), Column("Into", names=True, kind="code"),
        *(Column(when, spread, "times") for when in ("Before", "After")),
    ]  # fmt: skip
    lines = [
        Line(place.source, [", ".join(place.readers), place.spread_before, place.spread_after])
        for place in record.equalised
    ]
    caption = "Spread of the activations between two layers, before and after"
    name = f"Equalised channels of {record.model} in {record.engine}"
    return Table(name, caption, columns, lines)
