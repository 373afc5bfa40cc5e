"""Run single operations of an ONNX graph in float64 with the reference evaluator of onnx.

Nothing here uses the algebra: what an operation means is what the onnx package says it means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam.frontends.onnx.tensors import (
    FLOATS,
    as_array,
    as_double,
    from_array,
    onnx_module,
    to_torch,
)

if TYPE_CHECKING:
    from onnx import NodeProto

_DOUBLE = 11
_PLAIN_BATCH_NORM = 14
"""Opset from which BatchNormalization says itself whether it is in training mode."""


def run_nodes(
    nodes: Sequence[NodeProto], feeds: Mapping[str, Tensor], output: str, opset: int
) -> Tensor:
    """Run operations in order and return one of their values; floating point is float64 throughout.

    Args:
        nodes: Operations of the default domain.
        feeds: Values that they read; floating-point ones as float64.
        output: Name of the value to return.
        opset: Version of the operations.

    """
    if nodes[0].op_type == "ConvTranspose":
        return _transposed(nodes[0], feeds, opset)
    if nodes[0].op_type == "BatchNormalization":
        # For older opsets the evaluator fails, or takes the statistics of the batch.
        return _run([_without(nodes[0], "spatial")], feeds, output, max(opset, _PLAIN_BATCH_NORM))
    return _run(nodes, feeds, output, opset)


def _without(node: NodeProto, name: str) -> NodeProto:
    """Copy an operation without one of its attributes."""
    twin: Any = type(node)()
    twin.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del twin.attribute[:]
    twin.attribute.extend(kept)
    return twin  # type: ignore[no-any-return]


def _transposed(node: NodeProto, feeds: Mapping[str, Tensor], opset: int) -> Tensor:
    """Run a transposed convolution group by group: onnx's reference mixes its groups up."""
    count = next((a.i for a in node.attribute if a.name == "group"), 1)
    # An output_shape holds for one size of input only; it says what is cut off, not what is there.
    plain = _without(_without(node, "group"), "output_shape")
    axes = dict(zip(node.input, (1, 0, 0), strict=False))
    parts = [
        {name: value.chunk(count, axes[name])[k].contiguous() for name, value in feeds.items()}
        for k in range(count)
    ]
    return torch.cat([_run([plain], part, node.output[0], opset) for part in parts], 1)


def _run(
    nodes: Sequence[NodeProto], feeds: Mapping[str, Tensor], output: str, opset: int
) -> Tensor:
    values = {name: as_double(value) for name, value in feeds.items()}
    (result,) = evaluated([_in_double(node) for node in nodes], values, [output], {"": opset})
    return as_double(result)


def evaluated(
    nodes: Sequence[NodeProto], feeds: Mapping[str, Tensor], outputs: Sequence[str],
    opsets: Mapping[str, int],
) -> list[Tensor]:  # fmt: skip
    """Run operations in order, in the types that their values have.

    Args:
        nodes: The operations.
        feeds: Values that they read.
        outputs: Names of the values to return.
        opsets: Version of the operations of each domain.

    """
    onnx, reference = onnx_module(), onnx_module("onnx.reference")
    graph = onnx.helper.make_graph(
        nodes,
        "region",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    evaluator = reference.ReferenceEvaluator(graph, opsets=dict(opsets))
    found = evaluator.run([*outputs], {name: as_array(value) for name, value in feeds.items()})
    return [from_array(value) for value in found]


def constant_of(node: NodeProto) -> Tensor | None:
    """The tensor of a Constant node; None for strings and sparse ones."""
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                kind = attribute.t.data_type
                return None if kind == _string() else to_torch(attribute.t)
            case "value_float":
                return torch.tensor(attribute.f, dtype=torch.float32)
            case "value_floats":
                return torch.tensor(list(attribute.floats), dtype=torch.float32)
            case "value_int":
                return torch.tensor(attribute.i)
            case "value_ints":
                return torch.tensor(list(attribute.ints), dtype=torch.int64)
    return None


def _string() -> int:
    code: int = onnx_module().TensorProto.STRING
    return code


def _in_double(node: NodeProto) -> NodeProto:
    """Copy an operation so that it keeps float64 where it would go to another floating type."""
    if node.op_type != "Cast":
        return node
    twin: Any = type(node)()
    twin.CopyFrom(node)
    for attribute in twin.attribute:
        if attribute.name == "to" and attribute.i in FLOATS:
            attribute.i = _DOUBLE
    return twin  # type: ignore[no-any-return]
