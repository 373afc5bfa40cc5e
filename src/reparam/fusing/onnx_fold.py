"""The numbers of a region of an ONNX graph: computed and checked in float64, cast once."""

from __future__ import annotations

import torch
from torch import Tensor

from reparam.algebra import evaluate, layer_arguments
from reparam.algebra.direct import Positions, at_positions
from reparam.frontends.hosted import transposed_of_rows
from reparam.frontends.onnx.lift import OnnxLifted
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.run import run_nodes
from reparam.fusing.execute import run_moved
from reparam.fusing.execute import run_nodes as run_region_nodes
from reparam.fusing.fold import FoldedLayer, fold_onto
from reparam.fusing.onnx_discover import OnnxFound
from reparam.program import Affine, HostedInput, Node

__all__ = ["fold_onnx"]


def fold_onnx(lifted: OnnxLifted, found: OnnxFound) -> FoldedLayer:
    """Compute the layer of a region and compare it with the operations as onnx runs them."""
    dtype = found.dtype(lifted)
    assert dtype is not None  # noqa: S101 (regions without a type are objected to)
    if isinstance(found.region.source, HostedInput):
        return _fold_hosted(lifted, found, dtype)
    run = _Runner(lifted)
    return fold_onto(
        found.region,
        torch.empty(0, dtype=dtype),
        lambda sample, at: run_region_nodes(found.region, sample, run, at),
    )


class _Runner:
    """Runs the operations of planner nodes with the reference evaluator of onnx."""

    def __init__(self, lifted: OnnxLifted) -> None:
        self._lifted = lifted

    def __call__(
        self, node: Node, values: dict[Node, Tensor], at: Positions | None = None
    ) -> Tensor:
        """Run a node on the values of its inputs."""
        if isinstance(node, Affine) and node.moved is not None:
            return run_moved(node, values[node.inputs[0]], lambda x: self.run(node, [x]))
        result = self.run(node, [values[source] for source in node.inputs])
        return result if at is None else at_positions(result, at)

    def run(
        self, node: Node, inputs: list[Tensor], replaced: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Run the operations of a node, some of its constants replaced by other numbers."""
        protos, constants = self._lifted.nodes_of(node), self._lifted.constants
        inner = {name for proto in protos for name in proto.output}
        names = [name for proto in protos for name in proto.input if name and name not in inner]
        values = [name for name in names if name not in constants]
        feeds = dict(zip(values, inputs, strict=True))
        feeds |= {name: constants.value(name) for name in names if name in constants}
        feeds |= self._lifted.stand_ins.get(node.order, {})
        return run_nodes(protos, feeds | (replaced or {}), protos[-1].output[0], self._lifted.opset)


@torch.no_grad()
def _fold_hosted(lifted: OnnxLifted, found: OnnxFound, dtype: torch.dtype) -> FoldedLayer:
    """Fold scales into a layer that is no ordinary convolution, and compare by running it."""
    region, layer = found.region, found.anchor
    assert region.expression is not None  # noqa: S101 (regions are never the identity)
    op = evaluate(region.expression)
    proto, name = lifted.layer_of(layer), lifted.reads(layer)[0]
    weight = lifted.constants.value(name)
    groups = attributes(proto).get("group", 1)
    if proto.op_type == "ConvTranspose":
        folded = transposed_of_rows(op.kernel.flatten(1), groups, weight.shape[2:])
        channels = weight.shape[0]
    else:
        folded = op.kernel.reshape(weight.shape)
        channels = weight.shape[1] * groups
    generator = torch.Generator().manual_seed(0)
    spatial = [2 * size + 5 for size in weight.shape[2:]]
    sample = torch.randn(2, channels, *spatial, dtype=torch.float64, generator=generator)
    run = _Runner(lifted)
    reference, scale = run_region_nodes(region, run.run(layer, [sample]), run, done=layer)
    mine = run.run(layer, [sample], {name: folded})
    if op.bias is not None:
        # The layer may have no bias of its own yet, so the new one is added behind it.
        own = lifted.reads(layer)[1:]
        shift = op.bias - lifted.constants.value(own[0]) if own else op.bias
        mine = mine + shift.reshape(-1, *(1,) * len(spatial))
    error = float((mine - reference).abs().max())
    arguments, _ = layer_arguments(op.geometry)
    return FoldedLayer(
        arguments, folded.to(dtype).contiguous(),
        None if op.bias is None else op.bias.to(dtype), error / scale if scale else error,
    )  # fmt: skip
