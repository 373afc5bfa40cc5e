"""Read an ONNX graph into normal form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from reparam._support.optional import require
from reparam.diffing.onnx_operators import HANDLERS
from reparam.diffing.values import Form
from reparam.diffing.vocabulary import Vocabulary, read
from reparam.errors import UnsupportedModelError

if TYPE_CHECKING:
    import onnx

__all__ = ["read_onnx"]


def read_onnx(model: onnx.ModelProto, shapes: Sequence[Sequence[int]]) -> list[Form]:
    """Return the outputs of a graph in normal form, for inputs of these shapes.

    Raises:
        UnsupportedModelError: It holds an operator that normal form does not know.

    """
    return read(lambda words: _walk(words, model, shapes))


def _walk(words: Vocabulary, model: onnx.ModelProto, shapes: Sequence[Sequence[int]]) -> list[Form]:
    helper = require("onnx.numpy_helper", extra="deploy", purpose="reading ONNX files")
    graph = model.graph
    known: dict[str, Any] = {"": None}
    for stored in graph.initializer:
        known[stored.name] = torch.from_numpy(helper.to_array(stored).copy())
    free = [entry for entry in graph.input if entry.name not in known]
    for index, (entry, shape) in enumerate(zip(free, shapes, strict=True)):
        known[entry.name] = words.build.input(index, shape)
    for node in graph.node:
        results = _run(words, node, [known[name] for name in node.input], model)
        noted = words.noted(node.output[0], list(results))
        known.update(zip(node.output, noted, strict=False))
    return [words.form(known[entry.name]) for entry in graph.output]


def _run(
    words: Vocabulary, node: onnx.NodeProto, given: list[Any], model: onnx.ModelProto
) -> Sequence[Any]:
    if node.op_type == "Shape" and isinstance(given[0], Form):
        return [torch.tensor(given[0].shape)]
    if not any(isinstance(value, Form) for value in tree_leaves(given)):
        return _constants(node, given, model)
    handler = HANDLERS.get(node.op_type)
    where = node.name or node.output[0]
    if handler is None:
        raise UnsupportedModelError(f"{node.op_type} at {where} has no normal form")
    attributes = {entry.name: _attribute(entry) for entry in node.attribute}
    result = words.translated(handler, node.op_type, where, [*given, *[None] * 8], attributes)
    return result if isinstance(result, (list, tuple)) else [result]


def _attribute(entry: onnx.AttributeProto) -> Any:
    onnx = require("onnx", extra="deploy", purpose="reading ONNX files")
    value = onnx.helper.get_attribute_value(entry)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if hasattr(value, "extend") else value


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
