"""What a page shows of a net in eight bits: drawings, what follows from them, and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reparam.report._markup import typeset
from reparam.report.charts import Bar, Ranked, Reference, bar_chart, ranked_chart
from reparam.report.int8_sentences import HARMLESS, advice, lost, size_clause
from reparam.report.numbers import (
    NOTHING,
    decibels,
    kibibytes,
    noise_share,
    percent,
    wilson_interval,
)
from reparam.report.phrases import points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.lab.quantizing.diagnosing import LayerDiagnosis
    from reparam.report.compressed import QuantizationRecord

__all__ = ["int8_section"]

_MOST_ROWS = 24
_FLOAT, _INT8 = "comparator", "deploy"


def int8_section(record: QuantizationRecord) -> dict[str, Any]:
    """The drawings, what follows from them, and the numbers of one net."""
    return {
        "title": f"{record.model} in {record.engine}",
        "conditions": (
            f"Judged on {record.judged_on}; calibrated on {_source(record.calibration)}. "
            f"File: {record.file} ({record.format})."
        ),
        "remarks": _remarks(record),
        "accuracy": _accuracy_chart(record),
        "size": _size_chart(record),
        "done": _done(record),
        "next": _next(record),
        "diagnosis": _diagnosis(record) if record.layers else None,
        "equalised": [
            {
                "source": place.source,
                "readers": ", ".join(place.readers),
                "before": f"{place.spread_before:.2f}×",
                "after": f"{place.spread_after:.2f}×",
                "before_sort": repr(place.spread_before),
                "after_sort": repr(place.spread_after),
            }
            for place in record.equalised
        ],
        "row": _overview(record),
    }


def _source(calibration: str) -> str:
    """Where samples come from, without counting them twice.

    >>> _source("300 samples: 300 training images of digits")
    '300 training images of digits'
    """
    return calibration.partition(" samples: ")[2] or calibration or "data that nobody named"


def _remarks(record: QuantizationRecord) -> list[str]:
    told = []
    drop = lost(record)
    if record.correct is not None and record.correct_float is not None and drop is not None:
        told.append(
            f"Of {record.samples:,} samples the float net gets {record.correct_float:,} right, "
            f"the file in eight bits {record.correct:,}: {points(drop)}."
        )
    if record.agree is not None:
        changed = record.samples - record.agree
        told.append(
            f"Both were run on the same samples; {changed:,} of them "
            f"({percent(changed / record.samples)}) changed class."
        )
    told.append(
        f"At the output the signal stands {decibels(record.output_db)} above the rounding noise, "
        f"an error of {noise_share(record.output_db)}."
    )
    total = len(record.quantized) + len(record.kept_float)
    told.append(
        f"{len(record.quantized)} of {total} layers are in eight bits, {size_clause(record)} "
        f"({kibibytes(record.float_bytes)} → {kibibytes(record.size_bytes)})."
    )
    return told


def _accuracy_chart(record: QuantizationRecord) -> str:
    """Both accuracies with their intervals, where classes are known."""
    if record.correct is None or record.correct_float is None:
        return ""
    bars = [
        _accuracy_bar("Float", "PyTorch", _FLOAT, record.correct_float, record.samples),
        _accuracy_bar("Eight bits", record.engine, _INT8, record.correct, record.samples),
    ]
    summary = f"Accuracy of {record.model} in float and in eight bits"
    return bar_chart(bars, unit="% correct", summary=summary, maximum=100)


def _accuracy_bar(label: str, detail: str, role: str, correct: int, samples: int) -> Bar:
    low, high = (100 * limit for limit in wilson_interval(correct, samples))
    share = correct / samples
    return Bar(label, detail, role, 100 * share, low, high, percent(share))


def _size_chart(record: QuantizationRecord) -> str:
    rows = (
        ("Float", "parameters", _FLOAT, record.float_bytes),
        ("Eight bits", "the whole file", _INT8, record.size_bytes),
    )
    bars = [
        Bar(label, detail, role, size / 1024, size / 1024, size / 1024, kibibytes(size))
        for label, detail, role, size in rows
    ]
    return bar_chart(bars, unit="KiB", summary=f"Size of {record.model}")


def _done(record: QuantizationRecord) -> list[str]:
    """The remedies, applied or not."""
    places = len(record.equalised)
    kept = ", ".join(record.kept_float)
    return [
        "Biases were corrected, so that channels keep the means that they have in float."
        if record.bias_corrected
        else "Biases were not corrected (--bias-correction).",
        f"Channels were equalised at {places} {'place' if places == 1 else 'places'}."
        if places
        else "Channels were not equalised (--equalize).",
        f"Left in float: {kept}." if kept else "No layer was left in float (--keep-float N).",
    ]


def _next(record: QuantizationRecord) -> str:
    if hint := advice(record):
        return f"{hint}."
    drop = lost(record)
    if drop is None:
        return "No classes are known, so that no loss can be told; judge the file where it is used."
    return f"Not more than {HARMLESS:g} points were lost, which quantization usually costs."


def _diagnosis(record: QuantizationRecord) -> dict[str, Any]:
    ordered = sorted(record.layers, key=lambda layer: layer.output_db)
    references = [Reference(record.output_db, f"the file in {record.engine}", dashed=False)]
    if record.simulated_db is not None:
        how = " without corrected biases" if record.bias_corrected else ""
        label = f"all layers at once, simulated{how}"
        simulated = Reference(record.simulated_db, label, dashed=True)
        references.append(simulated)
    return {
        "chart": ranked_chart(
            [_ranked(layer, record) for layer in ordered],
            references,
            names=("in eight bits", "left in float")
            if record.kept_float
            else ("in eight bits", ""),
            summary="Signal to noise at the output if one layer alone is rounded, worst first",
            most=_MOST_ROWS,
        ),
        "samples": record.simulated_on,
        "worst": _worst(ordered, record),
        "rows": [_layer_row(layer, record) for layer in ordered],
        "long": len(ordered) > _MOST_ROWS,
        "flips": any(layer.flips is not None for layer in ordered),
    }


def _ranked(layer: LayerDiagnosis, record: QuantizationRecord) -> Ranked:
    return Ranked(
        label=layer.name,
        detail=typeset(layer.what),
        value=layer.output_db,
        shown=decibels(layer.output_db),
        marked=layer.name in record.kept_float,
    )


def _worst(ordered: Sequence[LayerDiagnosis], record: QuantizationRecord) -> str:
    """Which layer hurts most, what of it, and what became of it."""
    worst = ordered[0]
    sides = ("weights", worst.weight_db), ("input", worst.input_db)
    (worse, least), (better, most) = sorted(sides, key=lambda side: side[1])
    told = (
        f"{worst.name} hurts most: rounded alone it leaves {decibels(worst.output_db)} at the "
        f"output. Its {worse} ({decibels(least)}) lost more than its {better} ({decibels(most)})."
    )
    if worst.name in record.kept_float:
        return f"{told} It was left in float."
    if record.simulated_db is None:
        return told
    return f"{told} All layers at once: {decibels(record.simulated_db)} by simulation."


def _layer_row(layer: LayerDiagnosis, record: QuantizationRecord) -> dict[str, Any]:
    cells = [
        _range(layer.weight_low, layer.weight_high),
        _range(layer.input_low, layer.input_high),
        {"shown": f"{layer.input_spread:.1f}×", "sort": repr(layer.input_spread)},
        *(
            {"shown": "exact" if db >= NOTHING else f"{db:.1f}", "sort": repr(db)}
            for db in (layer.weight_db, layer.input_db, layer.output_db)
        ),
    ]
    flips = layer.flips
    return {
        "name": layer.name,
        "what": typeset(layer.what),
        "kept": layer.name in record.kept_float,
        "cells": cells,
        "flips": {"shown": "–" if flips is None else percent(flips), "sort": repr(flips or 0.0)},
    }


def _range(low: float, high: float) -> dict[str, str]:
    """From the least to the largest value; sorted by how wide it is."""
    return {"shown": f"{low:.2f} to {high:.2f}", "sort": repr(high - low)}


def _overview(record: QuantizationRecord) -> dict[str, Any]:
    """One line of the table of several nets."""
    drop = lost(record)
    known = record.correct is not None and record.correct_float is not None
    accuracy, exact = record.correct or 0, record.correct_float or 0
    return {
        "model": record.model,
        "engine": record.engine,
        "cells": [
            {"shown": percent(exact / record.samples) if known else "–", "sort": repr(exact)},
            {"shown": percent(accuracy / record.samples) if known else "–", "sort": repr(accuracy)},
            {"shown": "–" if drop is None else f"{drop:.2f}", "sort": repr(drop or 0.0)},
            {"shown": decibels(record.output_db), "sort": repr(record.output_db)},
            {"shown": kibibytes(record.size_bytes), "sort": repr(record.size_bytes)},
        ],
    }
