"""What :func:`reparam.quantize` found, as records that a page is drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.report.benchmarks import engine_label
from reparam.report.compressed import QuantizationRecord
from reparam.report.results import Results

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reparam.lab.quantizing import QuantizeResult

__all__ = ["from_quantize", "quantization_record"]


def from_quantize(
    result: QuantizeResult,
    *,
    model: str = "",
    created: str = "",
    command: str = "",
    environment: Mapping[str, str] | None = None,
) -> Results:
    """Put the verdict, the remedies and the diagnosis on record.

    Args:
        result: What :func:`reparam.quantize` returned.
        model: What to call the net; by default what its file says that it was made from.
        created: When, in words.
        command: What made it, to repeat it.
        environment: What it ran on, a line each.

    >>> from reparam.report import render
    >>> page = render(from_quantize(result), "int8.html")  # doctest: +SKIP
    """
    record = quantization_record(result, model)
    return Results(
        title=f"{record.model} in eight bits",
        created=created,
        models=(),
        command=command,
        quantizations=(record,),
        environment=dict(environment or {}),
    )


def quantization_record(result: QuantizeResult, model: str = "") -> QuantizationRecord:
    """The result of one quantization, with counts in place of shares."""
    score, diagnosis = result.score, result.diagnosis
    return QuantizationRecord(
        model=model or result.metadata.get("reparam.source", "The net"),
        engine=engine_label(result.engine),
        format=result.format,
        file=result.path.name,
        judged_on=score.on,
        samples=score.samples,
        correct_float=_counted(score.float_accuracy, score.samples),
        correct=_counted(score.accuracy, score.samples),
        agree=_counted(score.agreement, score.samples),
        output_db=score.output_db,
        float_bytes=result.float_bytes,
        size_bytes=result.size_bytes,
        quantized=result.quantized,
        kept_float=result.kept_float,
        equalised=result.equalised,
        bias_corrected=result.bias_corrected,
        calibration=result.calibration,
        layers=diagnosis.layers if diagnosis else (),
        simulated_db=diagnosis.output_db if diagnosis else None,
        simulated_on=diagnosis.samples if diagnosis else None,
    )


def _counted(share: float | None, samples: int) -> int | None:
    return None if share is None else round(share * samples)
