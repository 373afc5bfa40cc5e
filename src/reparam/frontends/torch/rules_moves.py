"""Rules for operations that move or pass on values: pooling, padding, concatenation."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from reparam import algebra
from reparam.frontends.builder import Pads
from reparam.frontends.torch.arguments import (
    axis_from_readers,
    bind,
    channels_of,
    first,
    is_literal,
)
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.rules_layouts import averaged_positions, repadded
from reparam.frontends.torch.rules_routes import item_of
from reparam.frontends.torch.table import reads
from reparam.program import Node
from reparam.reasons import Why


@reads(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def average_pool_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.AvgPoolNd``."""
    module: Any = lifter.module(node)
    return _average_pool(
        lifter, node, _pool_dims(module), module.kernel_size, module.stride, module.padding,
        ceil_mode=module.ceil_mode, count_pads=module.count_include_pad,
        divisor=getattr(module, "divisor_override", None),
    )  # fmt: skip


@reads(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def average_pool_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.avg_poolNd``."""
    _, size, stride, padding, ceil_mode, count_pads, divisor, dilation = bind(
        node, ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
               "divisor_override", "dilation"),
        (None, None, None, 0, False, True, None, None),
    )  # fmt: skip
    if not all(is_literal(v) for v in (size, stride, padding, ceil_mode, count_pads, dilation)):
        return None
    dims = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d).index(node.target) + 1
    return _average_pool(
        lifter, node, dims, size, stride, padding, ceil_mode=ceil_mode, count_pads=count_pads,
        divisor=divisor, dilation=dilation,
    )  # fmt: skip


def _average_pool(  # noqa: PLR0913 (the layer's own arguments)
    lifter: Lifter, node: fx.Node, dims: int, size: Any, stride: Any, padding: Any, *,
    ceil_mode: bool, count_pads: bool, divisor: int | None, dilation: Any = None,
) -> Node | None:  # fmt: skip
    source = first(node)
    channels = channels_of(lifter, source, node)
    sizes = algebra.per_dim(size, dims)
    # It may be a pair for each dimension, or a word where it depends on the size of the input.
    pads = (padding,) * dims if isinstance(padding, int | str) else padding
    padded = any(pad not in (0, (0, 0)) for pad in pads)
    strides = sizes if stride is None or stride == [] else algebra.per_dim(stride, dims)
    if channels is None or divisor is not None:
        return lifter.opaque(node, keeps=True)
    reason = Why.CEIL_MODE(value=str(ceil_mode)) if ceil_mode else None
    if reason is None and isinstance(padding, str):
        reason = Why.AUTO_PAD(value=padding)
    if reason is None and not count_pads and padded:
        reason = Why.UNCOUNTED_PADDING(value=str(count_pads))
    if reason is None:
        return lifter.average(node, source, channels, sizes, strides, pads, dilation)
    # Windows that are cut off still average what is left of them, if no padding is counted.
    if padded and count_pads:
        return lifter.opaque(node, reason, keeps=True)
    return averaged_positions(lifter, node, dims, reason) or lifter.opaque(node, reason, keeps=True)


@reads(
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d
)
def zero_pad_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.ZeroPadNd`` and ``nn.ConstantPadNd`` with zeros."""
    module: Any = lifter.module(node)
    if getattr(module, "value", 0) != 0:
        return None
    return _zero_pad(lifter, node, tuple(module.padding))


@reads(F.pad)
def pad_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.pad``: with zeros an operator, with what the channel holds a matter of layout."""
    _, pads, mode, value = bind(
        node, ("input", "pad", "mode", "value"), (None, None, "constant", None)
    )
    if mode != "constant" and is_literal(pads):
        return lifter.repads(node, _pairs(pads), mode) or repadded(lifter, node, len(pads) // 2)
    if value not in (None, 0) or not is_literal(pads):
        return None
    return _zero_pad(lifter, node, tuple(pads))


def _zero_pad(lifter: Lifter, node: fx.Node, flat: tuple[int, ...]) -> Node | None:
    source = first(node)
    pairs = _pairs(flat)
    axis, channels = lifter.nodes[source].axis, channels_of(lifter, source, node)
    if axis is None:
        axis = axis_from_readers(lifter, node)
    if axis is None or channels is None or len(pairs) > -axis - 1:
        return None
    dims = -axis - 1
    pads = ((0, 0),) * (dims - len(pairs)) + pairs
    return lifter.zero_pad(node, source, channels, pads)


def _pairs(flat: Sequence[int]) -> Pads:
    """The padding of dimensions, the first of them first, which torch lists from the last one."""
    return tuple(zip(flat[::2], flat[1::2], strict=True))[::-1]


@reads(operator.getitem)
def item(lifter: Lifter, node: fx.Node) -> Node | None:
    """A slice ``x[:, :, 1:-1]``: a crop, padding by a negative number; else what it takes."""
    x, index = node.args
    index = index if isinstance(index, tuple) else (index,)
    whole = lifter.is_value(x) and all(isinstance(part, slice) for part in index)
    return (_cropped(lifter, node, index) if whole else None) or item_of(lifter, node)


def _cropped(lifter: Lifter, node: fx.Node, index: Sequence[Any]) -> Node | None:
    rank, axis = lifter.known(first(node)).rank, lifter.nodes[first(node)].axis
    if axis is None:
        axis = axis_from_readers(lifter, first(node))
    if rank is None and axis is not None:
        rank = 1 - axis
    if rank is None or axis is None or axis + rank != 1:
        return None
    crops = [_crop(part) for part in index]
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


@reads(nn.Identity, "clone", "contiguous")
def pass_on(lifter: Lifter, node: fx.Node) -> Node | None:
    """An operation that returns its input."""
    return lifter.alias(node, first(node))


@reads(
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout
)
def dropout_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.Dropout`` and its kin in eval mode."""
    module = lifter.module(node)
    return None if module.training else lifter.alias(node, first(node))


@reads(F.dropout, torch.dropout)
def dropout_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.dropout`` with ``training=False``."""
    _, _, training, _ = bind(node, ("input", "p", "training", "inplace"), (None, 0.5, True, False))
    return lifter.alias(node, first(node)) if training is False else None


@reads(
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.Softplus,
    F.relu,
    F.relu6,
    F.gelu,
    F.silu,
    F.hardswish,
    F.leaky_relu,
    F.sigmoid,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    F.mish,
    F.elu,
    F.softplus,
    torch.abs,
    torch.erf,
    torch.exp,
    torch.sqrt,
    "relu",
    "relu_",
    "sigmoid",
    "tanh",
)
def elementwise(lifter: Lifter, node: fx.Node) -> Node | None:
    """An activation: nothing folds through it, but axes stay in place."""
    return lifter.opaque(node, keeps=True)


@reads(torch.cat, torch.concat, torch.concatenate, torch.hstack, any_arguments=True)
def concat(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.cat`` along the channel axis, which some of the parts may not know as such."""
    parts, dim = bind(node, ("tensors", "dim"), (None, 0))
    dim = 1 if node.target is torch.hstack else dim
    if not isinstance(parts, list | tuple) or not all(lifter.is_value(p) for p in parts):
        return None
    axes = {lifter.nodes[p].axis for p in parts} - {None}
    ranks = {lifter.known(p).rank for p in parts} - {None}
    if len(axes) != 1 or len(ranks) > 1 or not isinstance(dim, int):
        return None
    axis, rank = axes.pop(), ranks.pop() if ranks else None
    if axis is None or (dim >= 0 and rank is None):
        return None
    if (dim if dim < 0 else dim - (rank or 0)) != axis:
        return None
    return lifter.concat(node, list(parts), axis)


@reads("reshape_as", "view_as", any_arguments=True)
def shape_of_another(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.reshape_as(y)`` reads the contents of ``x`` and of ``y`` the shape alone."""
    x, other = bind(node, ("self", "other"), (None, None))
    if not lifter.is_value(x) or not lifter.is_value(other):
        return None
    return lifter.shaped_like(node, x, other)


def _pool_dims(module: nn.Module) -> int:
    kinds = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
    return next(dims for kind, dims in kinds.items() if isinstance(module, kind))
