"""Rules for operations that take channels apart or move them: chunks, slices, shuffles."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from reparam.frontends.torch.arguments import bind, first
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.table import reads
from reparam.program import Node

__all__ = ["part_of", "picked"]


@reads(torch.chunk, "chunk")
def chunk(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.chunk(n, dim)``: its parts are what is read, see :func:`part_of`."""
    return _taken_apart(lifter, node)


@reads(torch.split, "split")
def split(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.split(sizes, dim)``, in the same way."""
    return _taken_apart(lifter, node)


def _taken_apart(lifter: Lifter, node: fx.Node) -> Node | None:
    if _parts(lifter, node) is None or not all(_is_item(user) for user in node.users):
        return None
    return lifter.unknown(node, [])


def _is_item(user: fx.Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int)


def part_of(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.chunk(n, dim)[k]``: some of the channels."""
    parts, k = node.args
    if not isinstance(parts, fx.Node) or not isinstance(k, int):
        return None
    known = _parts(lifter, parts)
    if known is None or not -len(known) <= k < len(known):
        return None
    return picked(lifter, node, first(parts), known[k])


def picked(lifter: Lifter, node: fx.Node, x: fx.Node, channels: Sequence[int]) -> Node | None:
    """Some of the channels of ``x``, in an order."""
    if not channels:
        return None
    axis, rank = lifter.nodes[x].axis, lifter.known(x).rank
    return lifter.routed(node, x, [(channel,) for channel in channels], axis, rank)


def _parts(lifter: Lifter, node: fx.Node) -> list[range] | None:
    """The channels in each part, where an operation parts channels."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", None)
    if name not in {"chunk", "split"} or not lifter.is_value(first(node)):
        return None
    _, how, dim = bind(node, ("input", "chunks", "dim"), (None, None, 0))
    for keyword in ("split_size_or_sections", "split_size"):
        how = node.kwargs.get(keyword, how)
    facts, axis = lifter.known(first(node)), lifter.nodes[first(node)].axis
    if facts.rank is None or axis is None or facts.channels is None or not isinstance(dim, int):
        return None
    if dim % facts.rank != axis + facts.rank:
        return None
    total = facts.channels
    if isinstance(how, int):
        size = -(-total // how) if name == "chunk" else how
        sizes = [min(size, total - start) for start in range(0, total, size)] if size > 0 else []
    elif isinstance(how, list | tuple) and all(isinstance(n, int) for n in how):
        sizes = list(how)
    else:
        return None
    if sum(sizes) != total:
        return None
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


@reads(nn.ChannelShuffle, torch.channel_shuffle)
def channel_shuffle(lifter: Lifter, node: fx.Node) -> Node | None:
    """``channel_shuffle(x, g)``: channel ``i * g + k`` comes from ``k * (C / g) + i``."""
    groups = _factor(lifter, node, "groups")
    x, channels = _of_images(lifter, node)
    if channels is None or not groups or channels % groups:
        return None
    width = channels // groups
    order = [k * width + i for i in range(width) for k in range(groups)]
    return picked(lifter, node, x, order)


@reads(nn.PixelShuffle, torch.pixel_shuffle)
def pixel_shuffle(lifter: Lifter, node: fx.Node) -> Node | None:
    """``pixel_shuffle(x, r)``: channel ``c`` is made of the ``r * r`` channels from ``c * r * r``.

    One scale for it is one scale for all of these; the other way round it would be several.
    """
    x, channels = _of_images(lifter, node)
    factor = _factor(lifter, node, "upscale_factor")
    if channels is None or not factor or channels % (factor * factor):
        return None
    block = factor * factor
    origins = [range(c, c + block) for c in range(0, channels, block)]
    return lifter.routed(node, x, origins, -3, 4)


@reads(nn.PixelUnshuffle, torch.pixel_unshuffle)
def pixel_unshuffle(lifter: Lifter, node: fx.Node) -> Node | None:
    """``pixel_unshuffle(x, r)``: ``r * r`` channels are made of each one."""
    x, channels = _of_images(lifter, node)
    factor = _factor(lifter, node, "downscale_factor")
    if channels is None or not factor:
        return None
    origins = [(c,) for c in range(channels) for _ in range(factor * factor)]
    return lifter.routed(node, x, origins, -3, 4)


@reads(torch.tile, "repeat", "tile")
def repeat(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.repeat(1, n, 1, 1)`` and ``torch.tile``: all channels, ``n`` times, one after another."""
    times = [*node.args[1:], *(node.kwargs[k] for k in ("repeats", "dims") if k in node.kwargs)]
    if len(times) == 1 and isinstance(times[0], list | tuple):
        times = list(times[0])
    x, channels = _of_images(lifter, node)
    if channels is None or not 3 <= len(times) <= 4 or not all(isinstance(n, int) for n in times):
        return None
    count: Any = times.pop(-3)
    return picked(lifter, node, x, [*range(channels)] * count) if set(times) == {1} else None


@reads(torch.repeat_interleave, "repeat_interleave")
def repeat_interleave(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.repeat_interleave(x, n, dim=1)``: every channel ``n`` times in a row."""
    _, count, dim = bind(node, ("input", "repeats", "dim"), (None, None, None))
    x, channels = _of_images(lifter, node)
    if channels is None or not isinstance(count, int) or dim not in {1, -3}:
        return None
    return picked(lifter, node, x, [c for c in range(channels) for _ in range(count)])


@reads("expand")
def expand(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.expand(-1, n, -1, -1)``: one channel becomes ``n`` equal ones."""
    sizes: list[Any] = list(node.args[1:])
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = list(sizes[0])
    x, channels = _of_images(lifter, node)
    if channels != 1 or len(sizes) != lifter.known(x).rank:
        return None
    count = sizes.pop(1)
    alone = isinstance(count, int) and all(size == -1 for size in sizes)
    return picked(lifter, node, x, [0] * max(count, 1)) if alone else None


def _of_images(lifter: Lifter, node: fx.Node) -> tuple[fx.Node, int | None]:
    """What an operation reads, and its channels where it is a batch of images."""
    x = first(node)
    facts, axis = lifter.known(x), lifter.nodes[x].axis
    images = axis is not None and facts.rank is not None and axis + facts.rank == 1
    return x, facts.channels if images else None


def _factor(lifter: Lifter, node: fx.Node, name: str) -> int | None:
    """The one number that an operation is called with or that its module holds."""
    if node.op == "call_module":
        module: Any = lifter.module(node)
        value = getattr(module, name)
    else:
        _, value = bind(node, ("input", name), (None, None))
    return value if isinstance(value, int) else None
