"""Quantize a fused net: remedies, the engine's own quantizer, and a verdict in the engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

from reparam._support.arguments import (
    FLAG,
    FUNCTION,
    MODULE,
    NONE,
    PATH,
    TEXT,
    number,
    several,
    takes,
    whole,
)
from reparam._support.files import atomic_path
from reparam._support.untouched import leaves_untouched
from reparam.deploy.engines._inputs import check_eval
from reparam.deploy.engines.int8 import AUTO, find_target, right_on
from reparam.deploy.engines.program import Conversion, Dynamic
from reparam.deploy.exporting.metadata import describe_model, write_sidecar
from reparam.errors import ExportError, ReparamError, VerificationError
from reparam.lab.quantizing.backends import Job, Written, batch_of
from reparam.lab.quantizing.correcting import correct_biases
from reparam.lab.quantizing.layers import layers_of
from reparam.lab.quantizing.preparing import Prepared, check_fused, prepare
from reparam.lab.quantizing.result import QuantizeResult, Score, score
from reparam.lab.quantizing.samples import Samples, Source, read_evaluation, samples_for
from reparam.lab.quantizing.targets import BACKENDS, arithmetic_on, check_target

if TYPE_CHECKING:
    import os

    from reparam.deploy.engines import Format
    from reparam.lab.quantizing.samples import Evaluation

Progress: TypeAlias = Callable[[float, float, str], object]
"""Called with steps done, steps in all, and what is done next."""

_STEPS = 5.0


@takes(
    fused=MODULE,
    path=PATH,
    engine=TEXT | NONE,
    reference=MODULE | NONE,
    samples=whole(1),
    equalize=FLAG,
    correct_bias=FLAG,
    keep_float=whole(0) | several(TEXT) | TEXT,
    diagnose=FLAG,
    weight_bits=whole(1) | NONE,
    max_drop=number() | NONE,
    dynamic=FLAG | TEXT,
    source=TEXT | NONE,
    progress=FUNCTION | NONE,
)
@leaves_untouched
def quantize(  # noqa: PLR0913 - each is one decision of the user
    fused: nn.Module,
    path: str | os.PathLike[str],
    calibration: Source,
    *,
    engine: str | None = None,
    reference: nn.Module | None = None,
    evaluation: Source | Evaluation | None = None,
    samples: int = 300,
    equalize: bool = False,
    correct_bias: bool = True,
    keep_float: int | Collection[str] = 0,
    diagnose: bool = True,
    target: str = AUTO,
    weight_bits: int | None = None,
    max_drop: float | None = None,
    dynamic: bool | str = True,
    source: str | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Write a fused net with integer weights and activations, judged in the engine that runs it.

    Post-training quantization to eight bits: NNCF for OpenVINO (``.xml``), ONNX Runtime's static
    quantization for ``.onnx``, ai-edge-quantizer for LiteRT (``.tflite``, whose inputs and outputs
    stay in float32); a step for each output channel of a weight. The file is loaded back
    in its engine and run on held-out data beside the float net before it takes its place, so what
    the result says is what an application gets.

    Args:
        fused: A net in eval mode that :func:`reparam.fuse` has nothing left to do on; it is not
            changed.
        path: The file to write.
        calibration: The data that ranges are read off: an :class:`reparam.lab.data.ImageData` (its
            training split is sampled), a name that :func:`reparam.lab.data.open_data` opens, a
            tensor of shape ``(N, ...)``, or an iterable of such batches or of (inputs, classes).
        engine: ``"openvino"``, ``"onnxruntime"`` or ``"litert"``; by default the suffix decides.
        reference: The float net to compare with, if not ``fused`` itself.
        evaluation: What to judge on. By default the test images of the calibration data set, its
            validation images where it has no others, and the calibration samples themselves where
            only batches are given.
        samples: How many samples to calibrate on.
        equalize: Equalise channels first, see :func:`reparam.lab.quantizing.equalize`.
        correct_bias: Give the channels the means that they have in float, see
            :func:`reparam.lab.quantizing.correct_biases`.
        keep_float: Layers to leave in float: their paths, or a number for so many of those that the
            diagnosis finds to hurt most.
        diagnose: Find out what rounding does to each layer
            (:func:`reparam.lab.quantizing.diagnose`).
        target: The processors that the file is for, one of :data:`reparam.lab.quantizing.TARGETS`;
            ``"auto"`` is this one. Weights have seven bits where sums of eight-bit products would
            saturate there, as on x86 without VNNI.
        weight_bits: 8 or 7 in place of what the target asks for; LiteRT has 8 alone.
        max_drop: Write only what loses at most so many points (hundredths) of accuracy; of top-1
            agreement, where the data has no classes.
        dynamic: Which dimensions of the input may vary, as for :func:`reparam.export`.
        source: What the net was made from, for the file's metadata. ``None`` is its class.
        progress: Called with steps done, steps in all, and what comes next.

    Returns:
        What was written, the verdict, and the diagnosis.

    Raises:
        InputError: An argument cannot be used, the net is not fused, or does not run on the data.
        DataError: There is no calibration data, or it is of no use.
        MissingExtraError: A quantizer or an engine is not installed.
        TrainingModeError: A net is in training mode.
        ExportError: The net cannot be converted, quantized or run. Nothing is written then.
        VerificationError: More accuracy is lost than ``max_drop``. Nothing is written then.
    """
    start, file = time.perf_counter(), Path(path)
    entry = check_target(file, engine)
    processors = find_target(target, entry.engine)
    arithmetic = arithmetic_on(processors, weight_bits, BACKENDS[entry.engine])
    tell = _Teller(progress)
    if reference is not None:
        check_eval(reference, "quantizing against a reference")
    shapes = Dynamic.of(dynamic)
    held = samples_for(fused, calibration, samples, "quantizing")
    tell("reading the net")
    check_fused(fused, held)
    prepared = prepare(
        fused, held, keep_float, arithmetic, equalize=equalize, diagnose=diagnose, tell=tell.within
    )
    tell("correcting biases" if correct_bias else "preparing")
    to_write = prepared.model
    if correct_bias:
        to_write = correct_biases(
            prepared.model, prepared.seen, keep_float=prepared.keep_float, arithmetic=arithmetic
        )
    bits = arithmetic.weight_bits
    metadata = _metadata(fused, entry, held, prepared, source, correct_bias=correct_bias) | {
        "reparam.target": processors.name,
        "reparam.weight_bits": str(bits),
        "reparam.right_on": right_on(bits, entry.engine),
    }
    layers = layers_of(to_write, held.first(1))
    conversion = Conversion(to_write, (held.first(1),), shapes, metadata)
    job = Job(conversion, layers, held, prepared.keep_float, bits)
    judged_on = read_evaluation(evaluation, calibration, held)
    with atomic_path(file) as temporary:
        tell(f"quantizing for {entry.engine}")
        written = _write(entry, job, temporary)
        if entry.read_metadata is None:
            write_sidecar(temporary, metadata)
        size = sum(file.stat().st_size for file in temporary.parent.iterdir())
        tell(f"running it in {entry.engine}")
        verdict = score(
            reference or fused,
            entry.load(temporary, fused),
            judged_on,
            batch=batch_of(written.axes),
            progress=tell.within,
        )
        _check_drop(verdict, max_drop, prepared)
    return QuantizeResult(
        path=file,
        format=entry.name,
        engine=entry.engine,
        score=verdict,
        diagnosis=prepared.diagnosis,
        quantized=written.quantized,
        kept_float=prepared.keep_float,
        target=processors.name,
        weight_bits=bits,
        equalised=prepared.equalised,
        bias_corrected=correct_bias,
        calibration=f"{len(held)} samples: {held.name}",
        input_shape=tuple(held.inputs.shape[1:]),
        dynamic_axes=written.axes,
        metadata=metadata,
        size_bytes=size,
        float_bytes=sum(p.numel() * p.element_size() for p in fused.parameters()),
        seconds=time.perf_counter() - start,
    )


class _Teller:
    """Counts the steps of the whole, and parts of a step."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._step, self._what = progress, -1, ""

    def __call__(self, what: str) -> None:
        self._step, self._what = self._step + 1, what
        self.within(0, 1)

    def within(self, done: float, total: float, detail: str = "") -> None:
        """Tell of ``done`` of ``total`` parts of this step."""
        if self._progress is not None:
            part = done / total if total else 0.0
            what = f"{self._what} {detail}".rstrip()
            self._progress(min(self._step + part, _STEPS), _STEPS, what)


def _metadata(
    fused: nn.Module,
    entry: Format,
    held: Samples,
    prepared: Prepared,
    source: str | None,
    *,
    correct_bias: bool,
) -> dict[str, str]:
    """Return what the file says about itself: as an export does, and how it was quantized."""
    named = source or f"{type(fused).__module__}.{type(fused).__qualname__}"
    remedies = {
        "equalised": len(prepared.equalised),
        "bias_corrected": correct_bias,
        "kept_float": list(prepared.keep_float),
    }
    return describe_model(fused, entry, form="fused", source=named, inputs=(held.first(1),)) | {
        "reparam.precision": "int8",
        "reparam.calibration": f"{len(held)} samples: {held.name}",
        "reparam.remedies": json.dumps(remedies, sort_keys=True),
    }


def _write(entry: Format, job: Job, temporary: Path) -> Written:
    """Let the engine's quantizer write, and see that it did what it was asked for."""
    backend = BACKENDS[entry.engine]
    try:
        with torch.no_grad():
            written = backend.write(job, temporary)
    except ReparamError:
        raise
    except Exception as error:
        raise ExportError(
            f"{backend.tool} could not write the net as {entry.name} in eight bits: {error}; "
            "nothing was written"
        ) from error
    if not written.quantized:
        raise ExportError(
            f"the quantizer of {entry.engine} left all of the {len(job.layers)} layers in float; "
            "nothing was written"
        )
    broken = [name for name in job.keep_float if name in written.quantized]
    if broken:
        raise ExportError(
            f"{', '.join(broken)} should have stayed in float and did not; nothing was written"
        )
    return written


def _check_drop(verdict: Score, max_drop: float | None, prepared: Prepared) -> None:
    if max_drop is None or verdict.drop is None or verdict.drop <= max_drop:
        return
    what = "accuracy" if verdict.accuracy is not None else "agreement"
    worst = ""
    if prepared.diagnosis is not None:
        names = ", ".join(layer.name for layer in prepared.diagnosis.worst(3))
        worst = f" (what hurts most: {names})"
    raise VerificationError(
        f"the quantized net loses {verdict.drop:.2f} points of {what} where {max_drop:g} are "
        f"allowed: {verdict}; nothing was written. Equalise channels, leave more of the worst "
        f"layers in float{worst}, or train a quantization-aware net"
    )
