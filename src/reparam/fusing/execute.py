"""Run the operations of a region in float64 with torch's own functions: the reference of a fold.

Nothing here uses the algebra, so that an error there cannot hide. Weights are moved to float64
where they are used, a slice at a time, and never kept.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from reparam.algebra import flat_pads
from reparam.graph.builtin import is_builtin
from reparam.graph.ir import Affine, Alias, Node, Padded
from reparam.graph.kinds import AnyBatchNorm
from reparam.graph.lift import Lifted
from reparam.planner import Candidate

__all__ = ["Runner", "pad_as", "run_moved", "run_nodes", "run_region"]

SLICE = 1 << 18
"""Weights that are handled in float64 at a time: 2 MB, which stays in a core's cache."""


def run_region(
    lifted: Lifted, region: Candidate, x: Tensor, *, done: Node | None = None
) -> tuple[Tensor, float]:
    """Run the region on a float64 input; see :func:`run_nodes`."""
    return run_nodes(region, x, lambda node, given: _run_node(lifted, node, given), done=done)


Runner = Callable[[Node, dict[Node, Tensor]], Tensor]
"""Runs one node on the values of its inputs, in float64."""


def run_nodes(
    region: Candidate, x: Tensor, run: Runner, *, done: Node | None = None
) -> tuple[Tensor, float]:
    """Run the nodes of a region in order; ``done`` is a node whose value ``x`` is already.

    Returns:
        Its output, and the largest absolute value of any intermediate result, which is the scale
        that rounding errors are to be compared with.

    """
    values: dict[Node, Tensor] = {region.source: x}
    if isinstance(region.source, Padded):
        values[region.source.inputs[0]] = x
        values[region.source] = pad_as(region.source, x)
    if done is not None:
        values[done] = x
    scale = float(x.abs().max())
    for node in in_order(region.nodes, set(values)):
        if node is not done:
            passes = isinstance(node, Alias)
            values[node] = values[node.inputs[0]] if passes else run(node, values)
        scale = max(scale, float(values[node].abs().max()))
    return values[region.output], scale


def pad_as(source: Node, x: Tensor) -> Tensor:
    """Pad a value as the layers do that read it padded."""
    if not isinstance(source, Padded):
        return x
    return F.pad(x, flat_pads(source.pads), mode=source.mode)


def in_order(nodes: Iterable[Node], known: set[Node]) -> list[Node]:
    """Sort nodes so that each comes behind what it reads (moved ones keep their old order)."""
    waiting = sorted(nodes, key=lambda n: n.order)
    done, ordered = set(known), []
    while waiting:
        ready = next(n for n in waiting if all(v in done for v in n.inputs))
        waiting.remove(ready)
        done.add(ready)
        ordered.append(ready)
    return ordered


def _run_node(lifted: Lifted, node: Node, values: dict[Node, Tensor]) -> Tensor:
    if isinstance(node, Affine) and node.moved is not None:
        return _run_moved(lifted, node, values[node.inputs[0]])
    origin = lifted.node_of(node)
    if isinstance(node.inputs[0], Padded):
        # The value is padded already: run the layer's convolution without its padding.
        return _run_conv(lifted.trace.module(origin), values[node.inputs[0]], padding=0)
    given = {lifted.value_of(v): values[v] for v in node.inputs}
    return _run_origin(lifted, origin, given)


def _run_moved(lifted: Lifted, node: Affine, x: Tensor) -> Tensor:
    origin = lifted.node_of(node)
    read = origin.args[0] if origin.args else origin.kwargs["input"]
    if not isinstance(read, fx.Node) or lifted.constants.is_tensor(read):
        read = next(n for n in origin.all_input_nodes if not lifted.constants.is_tensor(n))
    return run_moved(node, x, lambda value: _run_origin(lifted, origin, {read: value}))


def run_moved(node: Affine, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Run a per-channel operation on the axis, and among the channels, that it was written for."""
    assert node.axis is not None  # noqa: S101 (moved nodes know their axes)
    assert node.moved is not None  # noqa: S101 (the caller's condition)
    own_axis, part = node.moved.axis, node.moved.part
    assert own_axis is not None  # noqa: S101 (moved nodes know their axes)
    moved = x.movedim(node.axis, -1)
    lead = moved.shape[:-1]
    flat = moved.reshape(-1, moved.shape[-1])
    if part is not None:
        start, stop, total = part
        wide = flat.new_zeros(flat.shape[0], total)
        wide[:, start:stop] = flat
        flat = wide
    # (rows, channels) with as many trailing axes as the operation expects behind its channels
    shaped = flat.reshape(*flat.shape, *(1,) * (-1 - own_axis))
    result = run(shaped).reshape(flat.shape)
    if part is not None:
        result = result[:, part[0] : part[1]]
    return result.reshape(*lead, -1).movedim(-1, node.axis)


def _run_origin(lifted: Lifted, origin: fx.Node, given: dict[fx.Node, Tensor]) -> Tensor:
    if origin.op == "call_module":
        first = origin.args[0] if origin.args else origin.kwargs["input"]
        assert isinstance(first, fx.Node)  # noqa: S101 (lifted modules read one tensor)
        return _run_module(lifted.trace.module(origin), given[first])

    def read(argument: fx.Node) -> Any:
        return given[argument] if argument in given else lifted.constants.value(argument)

    args, kwargs = fx.map_arg((origin.args, origin.kwargs), read)
    if origin.op == "call_method":
        method = _OUT_OF_PLACE.get(str(origin.target), str(origin.target))
        return getattr(args[0], method)(*args[1:], **kwargs)  # type: ignore[no-any-return]
    target: Any = _OUT_OF_PLACE_FUNCTIONS.get(origin.target, origin.target)
    return target(*args, **kwargs)  # type: ignore[no-any-return]


def _run_module(module: Any, x: Tensor) -> Tensor:
    result: Tensor
    if nn.utils.parametrize.is_parametrized(module) or not is_builtin(module):
        result = copy.deepcopy(module).to(torch.float64)(x)
    elif isinstance(module, nn.Linear):
        result = by_slices(
            lambda w, b: F.linear(x, w, b), module.weight, module.bias, channel_axis=-1
        )
    elif is_plain_conv(module):
        result = _run_conv(module, x, module.padding)
    elif isinstance(module, AnyBatchNorm):
        numbers = (module.running_mean, module.running_var, module.weight, module.bias)
        mean, var, weight, bias = (None if t is None else t.to(torch.float64) for t in numbers)
        result = F.batch_norm(x, mean, var, weight, bias, eps=module.eps)
    elif next(module.parameters(), None) is not None:
        result = copy.deepcopy(module).to(torch.float64)(x)
    else:
        result = module(x)
    return result


def _run_conv(module: Any, x: Tensor, padding: Any) -> Tensor:
    if nn.utils.parametrize.is_parametrized(module):
        module = copy.deepcopy(module).to(torch.float64)
    apply = _many_kernels(module, x, padding)
    if apply is None:
        function: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[module.weight.dim() - 2]

        def apply(weight: Tensor, bias: Tensor | None) -> Tensor:
            args = (module.stride, padding, module.dilation, module.groups)
            return function(x, weight, bias, *args)  # type: ignore[no-any-return]

    return by_slices(apply, module.weight, module.bias, sliceable=module.groups == 1)


def _many_kernels(
    module: Any, x: Tensor, padding: Any
) -> Callable[[Tensor, Tensor | None], Tensor] | None:
    """Gather the patches of a small input once, so that each slice is a matrix product.

    Torch's own float64 convolution gathers them for every slice and every group and is up to ten
    times slower. This is torch's definition of a convolution: F.unfold, multiply, add.
    """
    if x.dim() != _IMAGES or isinstance(padding, str):
        return None
    patches = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
    # A convolution of one channel, on zeros that take no memory, to be told the output's size.
    one = x.new_zeros(()).expand(1, 1, *module.kernel_size)
    size = F.conv2d(x[:1, :1], one, None, module.stride, padding, module.dilation).shape[2:]
    groups, batch = module.groups, len(x)
    grouped = patches.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2).contiguous()

    def apply(weight: Tensor, bias: Tensor | None) -> Tensor:
        kernels = weight.reshape(groups, -1, grouped.shape[2])
        # One plain product is several times faster than a batch of one.
        flat = grouped @ kernels.mT if groups > 1 else F.linear(grouped[0], kernels[0])[None]
        y: Tensor = flat.unflatten(1, (batch, -1)).permute(1, 0, 3, 2)
        y = y.reshape(batch, len(weight), *size)
        return y if bias is None else y + bias.view(-1, 1, 1)

    return apply


_IMAGES = 4  # batch, channels, height, width: what F.unfold takes


def is_plain_conv(module: nn.Module) -> bool:
    """Whether a module is an ordinary convolution with zero padding."""
    plain = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and is_builtin(module)
    return plain and module.padding_mode == "zeros"


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
