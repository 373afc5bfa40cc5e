"""The numbers of a region of an ONNX graph: computed and checked in float64, cast once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reparam.algebra.direct import Positions, at_positions
from reparam.frontends.hosted import transposed_of_rows
from reparam.frontends.onnx.lift import OnnxLifted
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.run import run_nodes
from reparam.frontends.onnx.tensors import FLOATS
from reparam.fusing.execute import (
    hosted_inputs,
    run_einsum,
    run_in_order,
    run_moved,
    run_sum,
)
from reparam.fusing.fold import FoldedLayer, fold_hosted, fold_norm, fold_onto
from reparam.planner import Candidate
from reparam.program import Affine, HostedInput, Node, Sum


def dtype_of(lifted: OnnxLifted, region: Candidate) -> torch.dtype | None:
    """The type of the numbers of a region's layer; None where the file does not tell."""
    code = lifted.constants.type(lifted.reads(region.anchor)[0])
    return None if code is None else FLOATS.get(code)


def fold_onnx(lifted: OnnxLifted, region: Candidate) -> FoldedLayer:
    """Compute the layer of a region and compare it with the operations as onnx runs them."""
    dtype = dtype_of(lifted, region)
    assert dtype is not None  # noqa: S101 (regions without a type are objected to)
    if isinstance(region.source, HostedInput):
        return _fold_hosted(lifted, region, dtype)
    runner, like = _Runner(lifted), torch.empty(0, dtype=dtype)

    def run(sample: Tensor, at: Positions | None) -> tuple[Tensor, float]:
        return run_in_order(region, sample, runner, at)

    if region.norm is None:
        return fold_onto(region, like, run)
    norm = lifted.layer_of(region.norm)
    mean, var = map(lifted.constants.value, norm.input[3:5])
    eps = attributes(norm).get("epsilon", 1e-5)
    return fold_norm(region, (mean, var, eps), like, run)


class _Runner:
    """Runs the operations of planner nodes with the reference evaluator of onnx."""

    def __init__(self, lifted: OnnxLifted) -> None:
        self._lifted = lifted

    def __call__(
        self, node: Node, values: dict[Node, Tensor], at: Positions | None = None
    ) -> Tensor:
        """Run a node on the values of its inputs."""
        if isinstance(node, Sum) and node.is_copy:
            return run_sum(node, values)
        protos = self._lifted.nodes_of(node)
        if protos[-1].input[0] in self._lifted.stacks:
            # Along an axis that rows of one dimension less have, too.
            stacked = torch.stack([values[source] for source in node.inputs])
            return stacked.mean(0) if protos[-1].op_type == "ReduceMean" else stacked.sum(0)
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
        feeds |= self._lifted.stand_ins.get(self._lifted.indices_of(node)[0], {})
        if protos[-1].op_type == "Einsum":
            operands = [feeds[name] for name in protos[-1].input]
            return run_einsum(attributes(protos[-1])["equation"], *operands)
        return run_nodes(protos, feeds | (replaced or {}), protos[-1].output[0], self._lifted.opset)


def _fold_hosted(lifted: OnnxLifted, region: Candidate, dtype: torch.dtype) -> FoldedLayer:
    layer = region.anchor
    proto, names = lifted.layer_of(layer), lifted.reads(layer)
    weight = lifted.constants.value(names[0])
    groups = attributes(proto).get("group", 1)
    turned = proto.op_type == "ConvTranspose"
    channels = weight.shape[0] if turned else weight.shape[1] * groups
    generator = torch.Generator().manual_seed(0)
    spatial = [2 * size + 5 for size in weight.shape[2:]]
    sample = torch.randn(2, channels, *spatial, dtype=torch.float64, generator=generator)
    run = _Runner(lifted)

    def shaped(rows: Tensor) -> Tensor:
        if turned:
            return transposed_of_rows(rows.flatten(1), groups, weight.shape[2:])
        return rows.reshape(weight.shape)

    def result(rows: Tensor, bias: Tensor | None) -> Tensor:
        mine = run.run(layer, [sample], {names[0]: shaped(rows)})
        if bias is None:
            return mine
        # The layer may have no bias of its own yet, so the new one is added behind it.
        shift = bias - lifted.constants.value(names[1]) if names[1:] else bias
        return mine + shift.reshape(-1, *(1,) * len(spatial))

    def reference() -> tuple[Tensor, float]:
        done = hosted_inputs(region, sample, run)
        for node in region.nodes - done.keys():
            if node.inputs[0] in done and node.is_layer:
                done[node] = run.run(node, [done[node.inputs[0]]])
        return run_in_order(region, sample, run, done=done)

    folded = fold_hosted(region, dtype, result, reference)
    return replace(folded, weight=shaped(folded.weight).contiguous())
