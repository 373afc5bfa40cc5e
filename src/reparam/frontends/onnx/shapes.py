"""Types and shapes of the values of an ONNX graph, as far as they are known without running it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reparam.frontends.onnx.inputs import declared_sizes, open_sizes
from reparam.frontends.onnx.tensors import onnx_module
from reparam.frontends.shapes import Shape

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto, ValueInfoProto

_SMALL = 1024
"""Numbers of a tensor that shape inference may want to read (shapes, axes, pads)."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is known of each value by name."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)

    def rank(self, name: str) -> int | None:
        """Number of dimensions of a value."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)


def infer(model: ModelProto) -> Shapes:
    """Infer what onnx can infer; bulky weights are left out, so that any size of model will do."""
    inference = onnx_module("onnx.shape_inference")
    bare = skeleton(model)
    del bare.graph.value_info[:]
    names = _distinct_names(bare.graph.input)
    with suppress(inference.InferenceError, RuntimeError, ValueError):
        # What the file itself declares is taken below, either way.
        bare = inference.infer_shapes(bare, data_prop=True)
    known = Shapes()
    for info in bare.graph.value_info:
        _note(info, known)
    for info in (*bare.graph.input, *bare.graph.output, *model.graph.value_info):
        if info.name not in known.shapes:
            _note(info, known, names)
    for tensor in model.graph.initializer:
        known.shapes[tensor.name] = tuple(tensor.dims)
        known.types[tensor.name] = tensor.data_type
    return known


def skeleton(model: ModelProto) -> ModelProto:
    """Copy a model without the numbers of its weights, and with open sizes declared as such."""
    onnx = onnx_module()
    bare: ModelProto = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.initializer.extend(_without_numbers(t) for t in model.graph.initializer)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    open_sizes(bare)
    return bare


def _distinct_names(values: Iterable[ValueInfoProto]) -> set[str]:
    """Names of sizes that stand for one size: some exporters call every open one alike."""
    found = Counter(
        d.dim_param for v in values for d in v.type.tensor_type.shape.dim if d.dim_param
    )
    return {name for name, times in found.items() if times == 1}


def _note(info: ValueInfoProto, known: Shapes, names: Container[str] | None = None) -> None:
    """Take a declared type and shape; of the names of sizes only the given ones, if any are."""
    kind, sizes = info.type.tensor_type.elem_type, declared_sizes(info)
    if kind:
        known.types[info.name] = kind
    if sizes is not None:
        known.shapes[info.name] = tuple(
            size if not isinstance(size, str) or names is None or size in names else None
            for size in sizes
        )


def _without_numbers(tensor: TensorProto) -> TensorProto:
    if math.prod(tensor.dims) <= _SMALL:
        return tensor
    kind = onnx_module().TensorProto
    bare: TensorProto = kind(
        name=tensor.name, data_type=tensor.data_type, dims=list(tensor.dims),
        data_location=kind.EXTERNAL,
    )  # fmt: skip
    bare.external_data.add(key="location", value="omitted")
    return bare
