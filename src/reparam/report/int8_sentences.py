"""What there is to say of nets in eight bits: the headline, the key figures, and what to try."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.report.numbers import decibels, kibibytes, noise_share, percent, ratio
from reparam.report.phrases import Figure, points, several_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.report.compressed import QuantizationRecord

__all__ = ["HARMLESS", "advice", "int8_figures", "int8_sentence", "lost", "size_clause"]

HARMLESS = 0.5
"""Points of accuracy that quantization usually costs."""


def lost(record: QuantizationRecord) -> float | None:
    """Points of accuracy lost; where no classes are known, of agreement; None for neither."""
    if record.correct_float is not None and record.correct is not None:
        return 100 * (record.correct_float - record.correct) / record.samples
    if record.agree is None:
        return None
    return 100 * (1 - record.agree / record.samples)


def int8_sentence(records: Sequence[QuantizationRecord]) -> str:
    """The headline; numbers stand between asterisks."""
    if len(records) == 1:
        return f"In eight bits {_outcome(records[0])}, {size_clause(records[0], strong=True)}."
    drops = [drop for record in records if (drop := lost(record)) is not None]
    engines = " and ".join(dict.fromkeys(record.engine for record in records))
    if not drops:
        return f"*{len(records)}* files in eight bits, run in {engines}."
    return f"In eight bits, *{len(records)}* files in {engines}: {several_points(drops)}."


def _outcome(record: QuantizationRecord) -> str:
    drop = lost(record)
    if record.correct is not None and drop is not None:
        right = percent(record.correct / record.samples)
        return f"*{right}* of {record.samples:,} samples are right, {_against_float(drop)}"
    if record.agree is not None:
        same = percent(record.agree / record.samples)
        return f"*{same}* of {record.samples:,} samples get the class that they get in float"
    return f"the output stands *{decibels(record.output_db)}* above the rounding noise"


def _against_float(drop: float) -> str:
    if round(drop, 2) == 0:
        return "as many as in float"
    return f"*{abs(drop):.2f} points* {'less' if drop > 0 else 'more'} than in float"


def size_clause(record: QuantizationRecord, *, strong: bool = False) -> str:
    """How large the file is; with `strong`, the number stands between asterisks."""
    factor = record.float_bytes / record.size_bytes
    shown = ratio(max(factor, 1 / factor))
    shown = f"*{shown}*" if strong else shown
    if abs(factor - 1) <= 0.03:
        return "in a file as large as the float weights"
    return f"in a file {shown} {'smaller' if factor > 1 else 'larger'} than the float weights"


def int8_figures(records: Sequence[QuantizationRecord], *, brief: bool = False) -> list[Figure]:
    """The key numbers of one net, the first two where it is to be `brief`; one each of several."""
    if len(records) > 1:
        return [_short_figure(record) for record in records[:4]]
    record = records[0]
    judged, size = _accuracy_figures(record), _size_figure(record)
    if brief:
        return [*judged[:1], size]
    return [*judged, size, _noise_figure(record)]


def _short_figure(record: QuantizationRecord) -> Figure:
    of = f"{record.model} in {record.engine}"
    drop = lost(record)
    if record.correct is not None and drop is not None:
        return Figure(percent(record.correct / record.samples), f"right: {of}", points(drop))
    if record.agree is not None:
        return Figure(percent(record.agree / record.samples), f"same class as in float: {of}")
    return Figure(decibels(record.output_db), f"signal to noise: {of}")


def _accuracy_figures(record: QuantizationRecord) -> list[Figure]:
    found = []
    drop = lost(record)
    if record.correct is not None and record.correct_float is not None and drop is not None:
        detail = f"{percent(record.correct_float / record.samples)} in float, {points(drop)}"
        value = percent(record.correct / record.samples)
        found.append(Figure(value, f"right in {record.engine}", detail))
    if record.agree is not None:
        value = f"{record.agree:,} / {record.samples:,}"
        changed = f"{record.samples - record.agree:,} changed class"
        found.append(Figure(value, "same class as in float", changed))
    return found


def _size_figure(record: QuantizationRecord) -> Figure:
    factor = record.float_bytes / record.size_bytes
    label = "smaller than in float" if factor >= 1 else "larger than in float"
    detail = f"{kibibytes(record.float_bytes)} → {kibibytes(record.size_bytes)}"
    return Figure(ratio(max(factor, 1 / factor)), label, detail)


def _noise_figure(record: QuantizationRecord) -> Figure:
    return Figure(
        decibels(record.output_db),
        "signal to noise",
        f"an error of {noise_share(record.output_db)} of the output",
    )


def advice(record: QuantizationRecord) -> str:
    """What has not been tried, where more was lost than quantization usually costs; else ''."""
    drop = lost(record)
    if drop is None or drop <= HARMLESS:
        return ""
    hints = []
    if not record.equalised:
        hints.append("--equalize, which changes nothing in float")
    if not record.bias_corrected:
        hints.append("--bias-correction")
    if not record.kept_float:
        hints.append("--keep-float 2, which leaves the two worst layers in float")
    untried = "; ".join(hints) or "quantization-aware training (reparam.lab.quantizing.prepare_qat)"
    return f"{drop:.2f} points were lost; try {untried}"
