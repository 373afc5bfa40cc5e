"""OpenVINO IR in eight bits, by NNCF (Intel's Neural Network Compression Framework)."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from reparam._support import optional
from reparam.deploy.engines._quiet import quiet
from reparam.deploy.engines.ov import RT_INFO, to_openvino
from reparam.lab.quantizing.backends import Job, Written, operations_of

if TYPE_CHECKING:
    from pathlib import Path

_PURPOSE = "quantizing for OpenVINO"
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_INTEGERS = ("i8", "u8")
# What stands between a layer and the constant of its weight.
_ON_THE_WAY = ("Convert", "FakeQuantize", "Multiply", "Reshape", "Subtract", "Transpose")


def write_openvino_int8(job: Job, path: Path) -> Written:
    """Convert the net, let NNCF quantize it, and write it as ``path`` with a ``.bin`` beside it.

    NNCF's mixed preset: a step for each output channel of a weight; activations with an offset
    where they take both signs. Ranges reach from the smallest to the largest value of the samples,
    where NNCF's default is an average over samples that cuts off what exceeds it. NNCF's own
    correction of biases is off: on fused nets it was measured to add noise, which
    :func:`reparam.lab.quantizing.correct_biases`, applied before, removes (docs/quantization.md).

    Raises:
        MissingExtraError: openvino or nncf is not installed.
        ExportError: The net cannot be converted, or a layer that stays in float is not in it.
    """
    openvino = optional.require("openvino", extra="quantize", purpose=_PURPOSE)
    converted, axes = to_openvino(job.conversion)
    weights = ((name, weight.get_data()) for name, weight in _held(converted))
    names = operations_of(job.layers, weights, job.keep_float)
    quantized = _quantize(converted, job, [names[name] for name in job.keep_float])
    for key, value in job.conversion.metadata.items():
        quantized.set_rt_info(value, [RT_INFO, key])
    openvino.save_model(quantized, str(path), compress_to_fp16=False)
    kinds = [(name, weight.get_element_type().get_type_name()) for name, weight in _held(quantized)]
    in_integers = {name for name, kind in kinds if kind in _INTEGERS}
    return Written(axes, tuple(n for n in job.layers if names.get(n) in in_integers))


def _quantize(converted: Any, job: Job, ignored: list[str]) -> Any:
    with quiet_nncf() as nncf:
        ranges = importlib.import_module("nncf.quantization.range_estimator")
        fix = nncf.OverflowFix.DISABLE if job.weight_bits == 8 else nncf.OverflowFix.ENABLE
        data = nncf.Dataset([sample.numpy() for sample in job.samples.batches(1)])
        return nncf.quantize(
            converted,
            data,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(job.samples),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=True,
                overflow_fix=fix,
                activations_range_estimator_params=ranges.RangeEstimatorParametersSet.MINMAX,
            ),
            ignored_scope=nncf.IgnoredScope(names=ignored) if ignored else None,
        )


@contextlib.contextmanager
def quiet_nncf() -> Iterator[Any]:
    """Import NNCF without what it prints, and without the logger class that it installs."""
    logger_class = logging.getLoggerClass()
    # It asks PyTorch's builder of extensions about GPUs, which answers in the user's terminal.
    with quiet("torch.utils.cpp_extension"), contextlib.redirect_stdout(io.StringIO()):
        try:
            nncf = optional.require("nncf", extra="quantize", purpose=_PURPOSE)
        finally:
            logging.setLoggerClass(logger_class)
        nncf.set_log_level(logging.ERROR)
        yield nncf


def _held(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the operations that may be layers, in order, with the constants of their weights."""
    for operation in model.get_ordered_ops():
        constant = _constant(operation)
        if constant is not None:
            yield operation.get_friendly_name(), constant


def _constant(operation: Any) -> Any | None:
    """Return the constant that a layer's second input comes from."""
    if operation.get_type_name() not in _LAYERS:
        return None
    node = operation.input_value(1).get_node()
    while node.get_type_name() in _ON_THE_WAY:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None
