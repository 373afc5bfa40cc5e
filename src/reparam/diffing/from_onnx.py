"""Read an ONNX graph into normal form: carry its operators out in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam._support.optional import require
from reparam.diffing.recording import Recorder, read_run
from reparam.diffing.values import Form
from reparam.errors import UnsupportedModelError
from reparam.frontends.onnx.in_torch import IN_TORCH
from reparam.frontends.onnx.inputs import required_inputs
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.tensors import FLOATS, to_torch

if TYPE_CHECKING:
    import onnx

__all__ = ["read_onnx"]


def read_onnx(model: onnx.ModelProto, inputs: Sequence[Tensor]) -> list[Form]:
    """Return the outputs of a graph in normal form, for inputs like these; see ``recording``."""
    graph, free = model.graph, required_inputs(model)
    types = [FLOATS.get(entry.type.tensor_type.elem_type) for entry in free]
    like = [x if kind is None else x.to(kind) for x, kind in zip(inputs, types, strict=True)]

    def run(recorder: Recorder, inputs: list[Tensor]) -> list[Tensor]:
        known: dict[str, Any] = {tensor.name: to_torch(tensor) for tensor in graph.initializer}
        known |= dict(zip((entry.name for entry in free), inputs, strict=True))
        for node in graph.node:
            given = [known[name] if name else None for name in node.input]
            recorder.path[:] = [node.name or node.output[0]]
            known |= zip(node.output, _results(recorder, node, given, model), strict=False)
        return [known[entry.name] for entry in graph.output]

    return read_run(run, like)


def _results(
    recorder: Recorder, node: onnx.NodeProto, given: list[Any], model: onnx.ModelProto
) -> Sequence[Any]:
    if not recorder.depends(given):
        return _constants(node, given, model)
    function = IN_TORCH.get(node.op_type)
    if function is None:
        raise UnsupportedModelError(f"{node.op_type} at {recorder.path[0]} has no normal form")
    try:
        result = function(*given, **attributes(node))
    except Exception as error:
        msg = (
            f"{node.op_type} at {recorder.path[0]} has no normal form as it is used there: {error}"
        )
        raise UnsupportedModelError(msg) from error
    return result if isinstance(result, (list, tuple)) else [result]


def _constants(node: onnx.NodeProto, given: list[Any], model: onnx.ModelProto) -> Sequence[Tensor]:
    """Compute what depends on no input by the reference evaluator."""
    onnx = require("onnx", extra="deploy", purpose="reading ONNX files")
    reference = require("onnx.reference", extra="deploy", purpose="reading ONNX files")
    feeds = {
        name: torch.as_tensor(value).numpy()
        for name, value in zip(node.input, given, strict=True)
        if name
    }
    named = [onnx.helper.make_tensor_value_info(name, 0, None) for name in feeds]
    outputs = [onnx.helper.make_tensor_value_info(name, 0, None) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "constants", named, outputs)
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    try:
        results = reference.ReferenceEvaluator(alone).run(None, feeds)
        return [torch.as_tensor(result.copy()) for result in results]
    except Exception as error:
        msg = f"the constants of {node.op_type} at {node.output[0]} cannot be computed: {error}"
        raise UnsupportedModelError(msg) from error
