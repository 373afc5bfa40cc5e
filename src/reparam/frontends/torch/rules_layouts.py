"""Rules for operations that move or average the elements of each channel by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from reparam.frontends.builder import joined_channels
from reparam.frontends.shapes import channel_axis_after, same_size
from reparam.frontends.torch.arguments import bind, first
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.rules_stacks import total
from reparam.frontends.torch.sizes import (
    features_read,
    is_batch_of,
    is_channels_of,
    measured_in,
    number,
)
from reparam.frontends.torch.table import reads
from reparam.program import Alias, Layout, Node
from reparam.reasons import Reason


@reads(nn.Upsample, F.interpolate)
def interpolate(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.interpolate`` and ``nn.Upsample``: each position is a weighted mean of others.

    The weights of every mode sum to one, at borders as well, where positions are repeated or, with
    ``antialias``, left out and the weights divided by what is left.
    """
    return _on_positions(lifter, node)


@reads(
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
def max_pool_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.MaxPoolNd`` and ``nn.AdaptiveMaxPoolNd``; padding never is the largest."""
    module: Any = lifter.module(node)
    return None if module.return_indices else _largest(lifter, node)


@reads(
    F.max_pool1d,
    F.max_pool2d,
    F.max_pool3d,
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
)
def max_pool_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.max_poolNd`` and ``F.adaptive_max_poolNd``."""
    names = (
        ("input", "output_size", "return_indices")
        if node.target in _ADAPTIVE
        else ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode",
              "return_indices")
    )  # fmt: skip
    indices = bind(node, names, (False,) * len(names))[-1]
    lifted = None if indices is not False else _largest(lifter, node)
    return lifted or lifter.opaque(node, keeps=True)


def _largest(lifter: Lifter, node: fx.Node) -> Node | None:
    return _on_positions(lifter, node, _pool_dims(lifter, node), monotone=True)


_ADAPTIVE = frozenset({F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d})


@reads(
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReflectionPad3d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
)
def repad_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.ReflectionPadNd``, ``nn.ReplicationPadNd``, ``nn.CircularPadNd``."""
    module: Any = lifter.module(node)
    return repadded(lifter, node, len(module.padding) // 2)


def repadded(lifter: Lifter, node: fx.Node, dims: int) -> Node | None:
    """Pad the last ``dims`` dimensions with elements of the same channel."""
    axis = lifter.nodes[first(node)].axis
    return None if axis is None or dims > -axis - 1 else _on_positions(lifter, node)


@reads(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
def global_pool_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.AdaptiveAvgPoolNd``: averages of each channel, of the whole channel for size one."""
    module: Any = lifter.module(node)
    return _adaptive_pool(lifter, node, module.output_size)


@reads(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
def global_pool_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.adaptive_avg_poolNd``."""
    _, size = bind(node, ("input", "output_size"), (None, None))
    return _adaptive_pool(lifter, node, size)


def _adaptive_pool(lifter: Lifter, node: fx.Node, size: object) -> Node | None:
    pooled = size == 1 or (isinstance(size, list | tuple) and all(n == 1 for n in size))
    lifted = _on_positions(lifter, node, _pool_dims(lifter, node), pooled=pooled)
    return lifted or lifter.opaque(node, keeps=True)


def averaged_positions(lifter: Lifter, node: fx.Node, dims: int, reason: Reason) -> Node | None:
    """An average pooling of which some windows have fewer elements; ``reason`` says so."""
    return _on_positions(lifter, node, dims, reason=reason)


def _on_positions(
    lifter: Lifter, node: fx.Node, dims: int | None = None, *, pooled: bool = False,
    monotone: bool = False, reason: Reason | None = None,
) -> Node | None:  # fmt: skip
    """A node that acts on the positions of images, ``(batch, channels, *positions)``.

    ``dims`` are those that it acts on by its name: with one dimension less it would take the
    channels for positions.
    """
    x = first(node)
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or axis is None or axis == -1 or axis + rank != 1:
        return None
    if dims not in {None, rank - 2}:
        return None
    return lifter.layout(
        node, x, axis, rank, pooled=pooled, monotone=monotone, batch=True, reason=reason
    )


def _pool_dims(lifter: Lifter, node: fx.Node) -> int:
    """Dimensions that a pooling pools, as its name says: ``MaxPool2d``, ``F.max_pool2d``."""
    target: Any = type(lifter.module(node)) if node.op == "call_module" else node.target
    return next(dims for dims, kinds in _POOLS.items() if _is_one(target, kinds))


def _is_one(target: Any, kinds: tuple[Any, ...]) -> bool:
    return target in kinds or (isinstance(target, type) and issubclass(target, kinds[:3]))


_POOLS: dict[int, tuple[Any, ...]] = {
    1: (nn.MaxPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d, F.max_pool1d,
        F.adaptive_max_pool1d, F.adaptive_avg_pool1d),
    2: (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, F.max_pool2d,
        F.adaptive_max_pool2d, F.adaptive_avg_pool2d),
    3: (nn.MaxPool3d, nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d, F.max_pool3d,
        F.adaptive_max_pool3d, F.adaptive_avg_pool3d),
}  # fmt: skip


@reads(torch.mean, "mean")
def mean(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.mean(dims)`` over other dimensions than that of the channels, or that of a stack."""
    return total(lifter, node) or _reduced(lifter, node, monotone=False)


@reads(torch.amax, "amax")
def largest_along(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.amax(dims)`` over other dimensions than that of the channels."""
    return _reduced(lifter, node, monotone=True)


def _reduced(lifter: Lifter, node: fx.Node, *, monotone: bool) -> Node | None:
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
    batch = 0 not in gone and channel != 0
    if keepdim:
        return lifter.layout(node, x, axis, rank, pooled=pooled, monotone=monotone, batch=batch)
    behind = [d for d in range(channel + 1, rank) if d not in gone]
    return lifter.layout(
        node, x, -1 - len(behind), rank - len(gone), pooled=pooled, monotone=monotone, batch=batch
    )


@reads(nn.Flatten, torch.flatten, "flatten")
def flatten(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.flatten``; where it joins channels and positions, each feature is of one channel."""
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
        return lifter.layout(node, x, channel - result, result, pooled=True, batch=start > 0)
    if channel is None or start <= channel <= end:
        features = features_read(lifter, node) if channel == start and end == rank - 1 else None
        if features is not None and facts.channels and features % facts.channels == 0:
            return _spread_over_features(lifter, node, x, features, result)
        lifted = lifter.opaque(node)
        lifter.facts_of(lifted).rank = result
        return lifted
    moved = channel - rank if channel > end else channel - result
    return lifter.layout(node, x, moved, result, batch=start > 0)


def _spread_over_features(
    lifter: Lifter, node: fx.Node, x: fx.Node, features: int, rank: int
) -> Node:
    """Channels and positions joined: as many features of each channel as there are positions."""
    channels = lifter.known(x).channels
    assert channels  # noqa: S101 (the caller has looked)
    origins = [(c,) for c in range(channels) for _ in range(features // channels)]
    return lifter.routed(node, x, origins, -1, rank)


@reads(torch.reshape, "reshape", "view")
def reshape(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.reshape(...)`` that leaves the channels on an axis of their own, or divides them.

    Elements keep their order, so channels stay channels where theirs is the last axis before and
    behind, or the second behind the same batch. ``(batch, groups, channels / groups, ...)`` divides
    them among two axes; they are together again where these two are one, in the order in which the
    axes then stand (a channel shuffle).
    """
    x = first(node)
    sizes = node.args[1:] or (node.kwargs.get("shape"),)
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    facts, axis = lifter.known(x), lifter.nodes[x].axis
    if facts.rank is None or not sizes:
        return None
    before, after = lifter.shape(x) or (), lifter.shape(node) or ()
    if before and after and axis is not None:
        moved = channel_axis_after(before, after, axis)
        if moved is not None:
            return lifter.layout(node, x, moved, len(sizes))
    same = min(len(before), len(after)) > 1 and same_size(before[:1], after[:1])
    batch = same or is_batch_of(lifter, sizes[0], x)
    if axis == -1 and is_channels_of(lifter, sizes[-1], x):
        return lifter.layout(node, x, -1, len(sizes), batch=batch)
    if not batch:
        return None
    if facts.digits:
        return _joined(lifter, node, x, sizes)
    return _reshaped(lifter, node, x, sizes) if axis == 1 - facts.rank else None


def _reshaped(lifter: Lifter, node: fx.Node, x: fx.Node, sizes: tuple[Any, ...]) -> Node | None:
    """Reshape ``(batch, channels, *positions)`` into something of the same batch."""
    facts = lifter.known(x)
    assert facts.rank is not None  # noqa: S101 (the caller has looked)
    if len(sizes) == 2 and facts.rank > 2:
        return _flattened(lifter, node, x, 1, facts.rank - 1)
    if len(sizes) > 1 and is_channels_of(lifter, sizes[1], x):
        return lifter.layout(node, x, 1 - len(sizes), len(sizes), batch=True)
    groups, width = (number(lifter, size) for size in (*sizes, None, None)[1:3])
    if not groups or width is None or groups * width != facts.channels:
        return None
    digits = ((1 - len(sizes), groups), (2 - len(sizes), width))
    return lifter.layout(node, x, None, len(sizes), batch=True, digits=digits)


def _joined(lifter: Lifter, node: fx.Node, x: fx.Node, sizes: tuple[Any, ...]) -> Node | None:
    """Channels that stand on two axes become one axis, in the order of these."""
    facts = lifter.known(x)
    assert facts.rank is not None  # noqa: S101 (the caller has looked)
    order = joined_channels(facts.digits, facts.rank)
    if order is None or len(sizes) < 2:
        return None
    rest = sizes[1] == -1 and facts.rank == len(sizes) + 1 and _keep_places(lifter, x, sizes[2:])
    if not rest and number(lifter, sizes[1]) != len(order):
        return None
    return lifter.routed(node, x, order, 1 - len(sizes), len(sizes))


def _keep_places(lifter: Lifter, x: fx.Node, sizes: tuple[Any, ...]) -> bool:
    """Whether sizes are those of the positions of ``x``, whose channels stand on two axes."""
    node = lifter.nodes[x]
    while isinstance(node, Layout | Alias) and node.axis is None:
        node = node.inputs[0]
    found = [measured_in(lifter, size) for size in sizes]
    return all(
        of is not None and lifter.nodes[of[0]] is node and of[1] == 2 + k
        for k, of in enumerate(found)
    )


@reads(nn.Unflatten, torch.unflatten, "unflatten")
def unflatten(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.unflatten(dim, sizes)`` of another dimension than that of the channels."""
    x, dim, sizes = bind(node, ("input", "dim", "sizes"), (None, None, None))
    if node.op == "call_module":
        module: Any = lifter.module(node)
        dim, sizes = module.dim, module.unflattened_size
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or axis is None or not isinstance(dim, int):
        return None
    if not isinstance(sizes, list | tuple) or dim % rank == axis + rank:
        return None
    more = len(sizes) - 1
    moved = axis if dim % rank < axis + rank else axis - more
    return lifter.layout(node, x, moved, rank + more, batch=dim % rank > 0)
