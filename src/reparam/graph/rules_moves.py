"""Rules for operations that move or pass on values: pooling, padding, layout, concatenation."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from reparam import algebra
from reparam.graph.arguments import axis_from_readers, bind, channels_of, first, is_literal
from reparam.graph.effects import metadata_read
from reparam.graph.ir import Alias, Node
from reparam.graph.lift import Lifter, Rule
from reparam.reasons import Why

__all__ = [
    "average_pool_function",
    "average_pool_module",
    "concat",
    "dropout_function",
    "dropout_module",
    "elementwise",
    "flatten",
    "global_pool_function",
    "global_pool_module",
    "item",
    "mean",
    "pad_function",
    "pass_on",
    "permute",
    "reshape",
    "shape_of_another",
    "stack",
    "transpose",
    "zero_pad_module",
]


def average_pool_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.AvgPoolNd``."""
    module: Any = lifter.module(node)
    return _average_pool(
        lifter, node, _pool_dims(module), module.kernel_size, module.stride, module.padding,
        ceil_mode=module.ceil_mode, count_pads=module.count_include_pad,
        divisor=getattr(module, "divisor_override", None),
    )  # fmt: skip


def average_pool_function(dims: int) -> Rule:
    """``F.avg_poolNd``, for a number of spatial dimensions."""

    def rule(lifter: Lifter, node: fx.Node) -> Node | None:
        _, size, stride, padding, ceil_mode, count_pads, divisor = bind(
            node, ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                   "divisor_override"),
            (None, None, None, 0, False, True, None),
        )  # fmt: skip
        if not all(is_literal(v) for v in (size, stride, padding, ceil_mode, count_pads)):
            return None
        return _average_pool(
            lifter, node, dims, size, stride, padding, ceil_mode=ceil_mode, count_pads=count_pads,
            divisor=divisor,
        )  # fmt: skip

    return rule


def _average_pool(  # noqa: PLR0913 (the layer's own arguments)
    lifter: Lifter, node: fx.Node, dims: int, size: Any, stride: Any, padding: Any, *,
    ceil_mode: bool, count_pads: bool, divisor: int | None,
) -> Node | None:  # fmt: skip
    source = first(node)
    channels = channels_of(lifter, source, node)
    sizes, pads = algebra.per_dim(size, dims), algebra.per_dim(padding, dims)
    strides = sizes if stride is None or stride == [] else algebra.per_dim(stride, dims)
    if channels is None or divisor is not None:
        return lifter.opaque(node, keeps=True)
    if ceil_mode:
        return lifter.opaque(node, Why.CEIL_MODE(value="True"), keeps=True)
    if not count_pads and any(pads):
        return lifter.opaque(node, Why.UNCOUNTED_PADDING(value="False"), keeps=True)
    return lifter.average(node, source, channels, sizes, strides, pads)


def zero_pad_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.ZeroPadNd`` and ``nn.ConstantPadNd`` with zeros."""
    module: Any = lifter.module(node)
    if getattr(module, "value", 0) != 0:
        return None
    return _zero_pad(lifter, node, tuple(module.padding))


def pad_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.pad`` with zeros."""
    _, pads, mode, value = bind(
        node, ("input", "pad", "mode", "value"), (None, None, "constant", None)
    )
    if mode != "constant" or value not in (None, 0) or not is_literal(pads):
        return None
    return _zero_pad(lifter, node, tuple(pads))


def _zero_pad(lifter: Lifter, node: fx.Node, flat: tuple[int, ...]) -> Node | None:
    source = first(node)
    pairs = list(zip(flat[::2], flat[1::2], strict=True))[::-1]
    axis, channels = lifter.nodes[source].axis, channels_of(lifter, source, node)
    if axis is None:
        axis = axis_from_readers(lifter, node)
    if axis is None or channels is None or len(pairs) > -axis - 1:
        return None
    dims = -axis - 1
    pads = [(0, 0)] * (dims - len(pairs)) + pairs
    return lifter.zero_pad(node, source, channels, tuple(pads))


def item(lifter: Lifter, node: fx.Node) -> Node | None:
    """A slice of the spatial axes, ``x[:, :, 1:-1]``, is a crop: padding by a negative number."""
    x, index = node.args
    index = index if isinstance(index, tuple) else (index,)
    if not lifter.is_value(x) or not all(isinstance(part, slice) for part in index):
        return None
    rank, axis = lifter.known(first(node)).rank, lifter.nodes[first(node)].axis
    if axis is None:
        axis = axis_from_readers(lifter, first(node))
    if rank is None and axis is not None:
        rank = 1 - axis
    if rank is None or axis is None or axis + rank != 1:
        return None
    crops = [_crop(part) for part in index]  # type: ignore[arg-type]
    if any(crop is None for crop in crops) or any(crop != (0, 0) for crop in crops[:2]):
        return None
    crops += [(0, 0)] * (rank - len(crops))
    flat = [value for pair in reversed(crops[2:]) if pair is not None for value in pair]
    return _zero_pad(lifter, node, tuple(flat))


def _crop(part: slice) -> tuple[int, int] | None:
    """How much a slice takes off at both ends, as padding; None if that depends on the size."""
    start, stop, step = part.start or 0, part.stop, part.step or 1
    if not isinstance(start, int) or start < 0 or step != 1:
        return None
    if stop is None:
        return (-start, 0)
    return (-start, stop) if isinstance(stop, int) and stop < 0 else None


def pass_on(lifter: Lifter, node: fx.Node) -> Node | None:
    """An operation that returns its input."""
    return lifter.alias(node, first(node))


def dropout_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.Dropout`` and its kin in eval mode."""
    module = lifter.module(node)
    return None if module.training else lifter.alias(node, first(node))


def dropout_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.dropout`` with ``training=False``."""
    _, _, training, _ = bind(node, ("input", "p", "training", "inplace"), (None, 0.5, True, False))
    return lifter.alias(node, first(node)) if training is False else None


def elementwise(lifter: Lifter, node: fx.Node) -> Node | None:
    """An activation: nothing folds through it, but axes stay in place."""
    return lifter.opaque(node, keeps=True)


def concat(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.cat`` along the channel axis."""
    parts, dim = bind(node, ("tensors", "dim"), (None, 0))
    dim = node.kwargs.get("axis", dim)
    if not isinstance(parts, list | tuple) or not all(lifter.is_value(p) for p in parts):
        return None
    axes = {lifter.nodes[p].axis for p in parts}
    ranks = {lifter.known(p).rank for p in parts}
    if len(axes) != 1 or len(ranks) != 1 or not isinstance(dim, int):
        return None
    axis, rank = axes.pop(), ranks.pop()
    if axis is None or (dim >= 0 and rank is None):
        return None
    if (dim if dim < 0 else dim - (rank or 0)) != axis:
        return None
    return lifter.concat(node, list(parts))


def stack(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.stack``: its values are joined along an axis of their own."""
    return lifter.opaque(node, Why.STACKED())


def flatten(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.flatten``, which leaves the channel axis alone."""
    x, start, end = bind(node, ("input", "start_dim", "end_dim"), (None, 0, -1))
    if node.op == "call_module":
        module: Any = lifter.module(node)
        start, end = module.start_dim, module.end_dim
    rank = lifter.known(x).rank
    if rank is None or not isinstance(start, int) or not isinstance(end, int):
        return None
    return _flattened(lifter, node, x, start % rank, end % rank)


def _flattened(lifter: Lifter, node: fx.Node, x: fx.Node, start: int, end: int) -> Node:
    facts, axis = lifter.known(x), lifter.nodes[x].axis
    rank = facts.rank
    assert rank is not None  # noqa: S101 (the rules have looked)
    result = rank - (end - start)
    channel = None if axis is None else axis + rank
    if facts.pooled and channel == start:
        return lifter.layout(node, x, channel - result, result, pooled=True)
    if channel is None or start <= channel <= end:
        lifted = lifter.opaque(node)
        lifter.facts_of(lifted).rank = result
        return lifted
    moved = channel - rank if channel > end else channel - result
    return lifter.layout(node, x, moved, result)


def reshape(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.reshape(B, C, -1)`` with the sizes of ``x`` itself, which is ``x.flatten(2)``."""
    x = first(node)
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or axis is None or axis + rank != 1 or len(sizes) != 3 or sizes[2] != -1:
        return None
    if not all(_is_size_of(lifter, size, x, dim) for dim, size in enumerate(sizes[:2])):
        return None
    return _flattened(lifter, node, x, 2, rank - 1)


def _is_size_of(lifter: Lifter, size: object, x: fx.Node, dim: int) -> bool:
    """Whether a value is the size of ``x`` in a dimension, by way of what keeps its shape."""
    if dim == 1 and isinstance(size, int):
        return size == lifter.known(x).channels
    if not isinstance(size, fx.Node):
        return False
    if size.target == "size" and size.args[1:] == (dim,):
        measured = size.args[0]
    else:
        shape = size.args[0] if size.target is operator.getitem and size.args[1:] == (dim,) else 0
        if not isinstance(shape, fx.Node) or metadata_read(shape) != "shape" or shape.args[2:]:
            return False
        measured = shape.args[0] if shape.args[1:] in {(), ("shape",)} else None
    value = lifter.nodes[x]
    while value is not lifter.nodes.get(measured):  # type: ignore[arg-type]
        if not (value.is_diagonal or isinstance(value, Alias)):
            return False
        value = value.inputs[0]
    return True


def global_pool_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.AdaptiveAvgPoolNd``: averages of each channel, of the whole channel for size one."""
    module: Any = lifter.module(node)
    return _adaptive_pool(lifter, node, module.output_size)


def global_pool_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.adaptive_avg_poolNd``."""
    _, size = bind(node, ("input", "output_size"), (None, None))
    return _adaptive_pool(lifter, node, size)


def _adaptive_pool(lifter: Lifter, node: fx.Node, size: object) -> Node | None:
    x = first(node)
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or axis is None or axis + rank != 1:
        return lifter.opaque(node, keeps=True)
    pooled = size == 1 or (isinstance(size, list | tuple) and all(n == 1 for n in size))
    return lifter.layout(node, x, axis, rank, pooled=pooled)


def mean(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.mean(dims)`` over other dimensions than that of the channels."""
    x, dims, keepdim = bind(node, ("input", "dim", "keepdim"), (None, None, False))
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        return None
    if rank is None or axis is None or not dims or node.kwargs.get("dtype") is not None:
        return None
    gone = {d % rank for d in dims}
    channel = axis + rank
    if channel in gone or not isinstance(keepdim, bool):
        return None
    pooled = gone >= set(range(channel + 1, rank))
    if keepdim:
        return lifter.layout(node, x, axis, rank, pooled=pooled)
    behind = [d for d in range(channel + 1, rank) if d not in gone]
    return lifter.layout(node, x, -1 - len(behind), rank - len(gone), pooled=pooled)


def permute(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.permute`` with literal axes."""
    x = first(node)
    rest = node.args[1:] or (node.kwargs.get("dims"),)
    dims = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or axis is None or not all(isinstance(d, int) for d in dims):
        return None
    if len(dims) != rank:
        return None
    order = [d % rank for d in dims if isinstance(d, int)]
    return lifter.layout(node, x, order.index(axis + rank) - rank, rank)


def transpose(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.transpose`` with literal axes."""
    x, first, second = bind(node, ("input", "dim0", "dim1"), (None, None, None))
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or axis is None or not isinstance(first, int) or not isinstance(second, int):
        return None
    swap = {first % rank: second % rank, second % rank: first % rank}
    channel = axis + rank
    return lifter.layout(node, x, swap.get(channel, channel) - rank, rank)


def shape_of_another(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.reshape_as(y)`` reads the contents of ``x`` and of ``y`` the shape alone."""
    x, other = bind(node, ("self", "other"), (None, None))
    if not lifter.is_value(x) or not lifter.is_value(other):
        return None
    return lifter.shaped_like(node, x, other)


def _pool_dims(module: nn.Module) -> int:
    kinds = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
    return next(dims for kind, dims in kinds.items() if isinstance(module, kind))
