"""ONNX in eight bits (QuantizeLinear and DequantizeLinear), by ONNX Runtime's own tools."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam._support import optional
from reparam.deploy.engines._quiet import quiet
from reparam.deploy.engines.ort import write_onnx
from reparam.lab.quantizing.backends import Job, Written, batch_of, operations_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_PURPOSE = "quantizing for ONNX Runtime"
_LAYERS = ("Conv", "Gemm", "MatMul")
# What stands between two layers and changes no value's precision.
_PASSING = (
    "AveragePool", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "ReduceMean", "Relu",
    "Reshape", "Transpose",
)  # fmt: skip


def write_onnx_int8(job: Job, path: Path) -> Written:
    """Write the net as ONNX and quantize it with ONNX Runtime's static quantization.

    Weights are int8 with a step for each output channel; activations uint8 with an offset; ranges
    are the smallest and largest values of the samples.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: A layer that stays in float is not in the graph.
    """
    onnx = optional.require("onnx", extra="quantize", purpose=_PURPOSE)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        exact = Path(folder, "float.onnx")
        axes = write_onnx(job.conversion, exact)
        with quiet("root"):
            model = _prepared(exact)
            names = operations_of(job.layers, _weights(model.graph), job.keep_float)
            ignored = [names[name] for name in job.keep_float]
            _quantize(job, model, path, ignored, batch_of(axes), _biases_apart(model))
    written = onnx.load(str(path))
    _unround_inputs(written.graph, set(ignored))
    onnx.helper.set_model_props(written, dict(job.conversion.metadata))
    onnx.checker.check_model(written, full_check=True)
    path.write_bytes(written.SerializeToString())
    in_integers = _quantized(written.graph)
    return Written(axes, tuple(name for name in job.layers if names.get(name) in in_integers))


def _prepared(exact: Path) -> Any:
    """Fold constants and infer shapes, which the quantizer relies on."""
    onnx = optional.require("onnx", extra="quantize", purpose=_PURPOSE)
    tools = optional.require(
        "onnxruntime.quantization.shape_inference", extra="quantize", purpose=_PURPOSE
    )
    out = exact.with_name("prepared.onnx")
    try:
        tools.quant_pre_process(str(exact), str(out))
    except Exception:  # noqa: BLE001 - its symbolic inference knows not every operator
        tools.quant_pre_process(str(exact), str(out), skip_symbolic_shape=True)
    return onnx.load(str(out))


def _biases_apart(model: Any) -> list[str]:
    """Add the biases of grouped transposed convolutions behind them; return what adds them.

    Their weights, stored as ``(I, O / groups, ...)``, have a step for each of ``O / groups``, by
    which the tools cannot divide a bias of ``O`` numbers.
    """
    onnx = optional.require("onnx", extra="quantize", purpose=_PURPOSE)
    stored = {value.name: value for value in model.graph.initializer}
    added = []
    for position, node in reversed(list(enumerate(model.graph.node))):
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type != "ConvTranspose" or len(node.input) < 3 or groups == 1:
            continue
        bias = onnx.numpy_helper.to_array(stored[node.input[2]])
        dims = len(stored[node.input[1]].dims) - 2
        name = f"{node.name}_bias"
        shaped = onnx.numpy_helper.from_array(bias.reshape(1, -1, *(1,) * dims), name)
        model.graph.initializer.append(shaped)
        whole, node.output[0] = node.output[0], f"{node.output[0]}_unbiased"
        del node.input[2]
        add = onnx.helper.make_node("Add", [node.output[0], name], [whole], f"{name}_add")
        model.graph.node.insert(position + 1, add)
        added.append(add.name)
    if added:
        _drop_unread(model.graph)
    return added


def _quantize(
    job: Job, model: Any, out: Path, ignored: list[str], batch: int, untouched: list[str]
) -> None:
    tools = optional.require("onnxruntime.quantization", extra="quantize", purpose=_PURPOSE)
    constants = {value.name for value in model.graph.initializer}
    name = next(value.name for value in model.graph.input if value.name not in constants)

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined] # untyped base
        """Hands the samples over."""

        def __init__(self) -> None:
            self._batches = job.samples.batches(batch)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self._batches, None)
            return None if found is None else {name: found.numpy()}

    tools.quantize_static(
        model,
        str(out),
        Reader(),
        quant_format=tools.QuantFormat.QDQ,
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        reduce_range=job.weight_bits == 7,
        nodes_to_exclude=[*ignored, *untouched],
        # A ReLU is left to the rounding behind it, which a layer in float does without.
        extra_options={"QDQKeepRemovableActivations": True} if ignored else {},
    )


def _unround_inputs(graph: Any, names: set[str]) -> None:
    """Let layers in float read what was not rounded.

    The tools leave the weights of an excluded layer alone and round its input all the same. The
    layer before then has no rounded output, so that ONNX Runtime computes it in float as well.
    """
    makers = {output: node for node in graph.node for output in node.output}
    pending = [node for node in graph.node if node.name in names]
    while pending:
        node = pending.pop()
        back = makers.get(node.input[0])
        if back is not None and back.op_type == "DequantizeLinear":
            there = makers.get(back.input[0])
            if there is not None and there.op_type == "QuantizeLinear":
                node.input[0] = there.input[0]
        before = makers.get(node.input[0])
        if before is not None and before.op_type in _PASSING:
            pending.append(before)
    _drop_unread(graph)


def _drop_unread(graph: Any) -> None:
    """Remove roundings, and their constants, that nothing reads any more."""
    rounding = ("QuantizeLinear", "DequantizeLinear")
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {value.name for value in graph.output}
        unread = [n for n in graph.node if n.op_type in rounding and n.output[0] not in read]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    for constant in [value for value in graph.initializer if value.name not in read]:
        graph.initializer.remove(constant)


def _weights(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield the operations that may be layers, in order, with their weights."""
    onnx = optional.require("onnx", extra="quantize", purpose=_PURPOSE)
    constants = {value.name: value for value in graph.initializer}
    for node in graph.node:
        if node.op_type in _LAYERS and len(node.input) > 1 and node.input[1] in constants:
            yield node.name, onnx.numpy_helper.to_array(constants[node.input[1]])


def _quantized(graph: Any) -> set[str]:
    """Return the operations that read a dequantized integer weight."""
    onnx = optional.require("onnx", extra="quantize", purpose=_PURPOSE)
    integers = {
        value.name
        for value in graph.initializer
        if value.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    }
    dequantized = {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in integers
    }
    return {
        node.name
        for node in graph.node
        if node.op_type in _LAYERS and len(node.input) > 1 and node.input[1] in dequantized
    }
