"""Run the operations of a region in float64 with torch's own functions: the reference of a fold.

Nothing here uses the algebra, so that an error there cannot hide. Weights are moved to float64 where
they are used, a slice at a time, and never kept.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from reparam.graph.ir import Kind, Node
from reparam.graph.lift import Lifted
from reparam.planner import Candidate

__all__ = ["run_region"]

SLICE = 1 << 18
"""Weights that are handled in float64 at a time: 2 MB, which stays in a core's cache."""


def run_region(lifted: Lifted, region: Candidate, x: Tensor) -> tuple[Tensor, float]:
    """Run the region on a float64 input.

    Returns:
        Its output, and the largest absolute value of any intermediate result, which is the scale
        that rounding errors are to be compared with.

    """
    values: dict[fx.Node, Tensor] = {lifted.origin[region.source]: x}
    scale = float(x.abs().max())
    ordered = sorted(region.nodes, key=lambda n: n.order)
    for node in ordered:
        origin = lifted.origin[node]
        values[origin] = _run_node(lifted, node, origin, values)
        scale = max(scale, float(values[origin].abs().max()))
    return values[lifted.origin[region.output]], scale


def _run_node(
    lifted: Lifted, node: Node, origin: fx.Node, values: dict[fx.Node, Tensor]
) -> Tensor:
    if node.kind is Kind.ALIAS:
        return values[lifted.origin[node.inputs[0]]]
    if origin.op == "call_module":
        return _run_module(lifted.trace.module(origin), values[lifted.origin[node.inputs[0]]])

    def read(argument: fx.Node) -> Any:
        if argument in values:
            return values[argument]
        return lifted.constants.value(argument)

    args, kwargs = fx.map_arg((origin.args, origin.kwargs), read)
    if origin.op == "call_method":
        method = _OUT_OF_PLACE.get(str(origin.target), str(origin.target))
        return getattr(args[0], method)(*args[1:], **kwargs)  # type: ignore[no-any-return]
    target: Any = _OUT_OF_PLACE_FUNCTIONS.get(origin.target, origin.target)
    return target(*args, **kwargs)  # type: ignore[no-any-return]


def _run_module(module: Any, x: Tensor) -> Tensor:
    if nn.utils.parametrize.is_parametrized(module):
        return copy.deepcopy(module).to(torch.float64)(x)  # type: ignore[no-any-return]
    if isinstance(module, nn.Linear):
        return by_slices(
            lambda w, b: F.linear(x, w, b), module.weight, module.bias, channel_axis=-1
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        function: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[module.weight.dim() - 2]
        return by_slices(
            lambda w, b: function(
                x, w, b, module.stride, module.padding, module.dilation, module.groups
            ),
            module.weight,
            module.bias,
            sliceable=module.groups == 1,
        )
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        numbers = (module.running_mean, module.running_var, module.weight, module.bias)
        mean, var, weight, bias = (None if t is None else t.to(torch.float64) for t in numbers)
        return F.batch_norm(x, mean, var, weight, bias, eps=module.eps)
    return module(x)  # type: ignore[no-any-return]


def by_slices(
    function: Callable[[Tensor, Tensor | None], Tensor], weight: Tensor, bias: Tensor | None, *,
    sliceable: bool = True, channel_axis: int = 1,
) -> Tensor:  # fmt: skip
    """Apply a layer a slice of output channels at a time, each slice in float64."""
    per_row = max(1, weight[0].numel())
    step = max(1, SLICE // per_row) if sliceable else weight.shape[0]
    parts = [
        function(
            weight[k : k + step].to(torch.float64),
            None if bias is None else bias[k : k + step].to(torch.float64),
        )
        for k in range(0, weight.shape[0], step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, channel_axis)


_OUT_OF_PLACE = {
    "add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div", "neg_": "neg",
    "__iadd__": "__add__",
}  # fmt: skip

_OUT_OF_PLACE_FUNCTIONS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
