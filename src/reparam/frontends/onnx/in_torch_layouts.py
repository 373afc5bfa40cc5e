"""What the operators of ONNX that move, pick, repeat and write elements are in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import flat_pads
from reparam.errors import UnsupportedModelError
from reparam.frontends.onnx.in_torch import IN_TORCH, entered, integers, number

__all__ = ["IN_TORCH", "PADDINGS", "sides"]


@entered("Reshape")
def _reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    sizes = integers(shape)
    if not allowzero:
        sizes = [x.shape[k] if size == 0 else size for k, size in enumerate(sizes)]
    return x.reshape(sizes)


@entered("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[: axis % (x.dim() + 1)]), -1)


@entered("Unsqueeze")
def _unsqueeze(x: Tensor, axes: Any) -> Tensor:
    places = integers(axes)
    for axis in sorted(axis % (x.dim() + len(places)) for axis in places):
        x = x.unsqueeze(axis)
    return x


@entered("Squeeze")
def _squeeze(x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(integers(axes))


@entered("Transpose")
def _transpose(x: Tensor, perm: Any = None) -> Tensor:
    return x.permute(perm or list(range(x.dim()))[::-1])


@entered("Tile")
def _tile(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(integers(repeats))


@entered("Expand")
def _expand(x: Tensor, shape: Any) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


@entered("Split")
def _split(x: Tensor, split: Any = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    if split is not None:
        return x.split(integers(split), axis)
    if num_outputs is None:
        raise UnsupportedModelError("it does not say into how many parts it splits")
    return x.split(-(-x.shape[axis] // num_outputs), axis)


@entered("SplitToSequence")
def _split_to_sequence(
    x: Tensor, split: Any = None, *, axis: int = 0, keepdims: int = 1
) -> list[Sequence[Tensor]]:
    """One size for every part, or one for each; the sequence is a single result."""
    if split is None and not keepdims:
        return [x.unbind(axis)]
    sizes = torch.as_tensor(1 if split is None else split)
    return [x.split(sizes.tolist(), axis)]


@entered("Slice")
def _slice(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    begins = integers(starts)
    along = range(len(begins)) if axes is None else integers(axes)
    strides = [1] * len(begins) if steps is None else integers(steps)
    for start, end, axis, step in zip(begins, integers(ends), along, strides, strict=True):
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(start, end, step),)]
        else:
            x = x.index_select(axis, torch.tensor(_backwards(x.shape[axis], start, end, step)))
    return x


def _backwards(size: int, start: int, end: int, step: int) -> list[int]:
    """The positions of a slice that runs backwards; an end before the first one is below -size."""
    first = min(start + size if start < 0 else start, size - 1)
    last = -1 if end < -size else end + size if end < 0 else end
    return list(range(first, last, step))


@entered("Gather")
def _gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    table = torch.as_tensor(indices)
    rows = x.index_select(axis, table.flatten() % x.shape[axis])
    place = axis % x.dim()
    return rows.reshape(*x.shape[:place], *table.shape, *x.shape[place + 1 :])


@entered("ScatterND")
def _scatter_nd(x: Tensor, indices: Any, by: Tensor, *, reduction: str = "none") -> Tensor:
    """Where what is written are whole slices along an axis, side by side."""
    table = torch.as_tensor(indices).long()
    depth = table.shape[-1]
    rows = (table % torch.tensor(x.shape[:depth])).reshape(-1, depth)
    origin = torch.full(x.shape[:depth], -1)
    origin[rows.unbind(1)] = torch.arange(len(rows))
    for axis in range(depth):
        written = (origin >= 0).movedim(axis, 0).reshape(x.shape[axis], -1)
        if bool((written == written[:, :1]).all()):
            break
    else:
        raise UnsupportedModelError("it writes no whole slices")
    index = written[:, 0].nonzero().flatten().tolist()
    if reduction != "none" or index != list(range(index[0], index[-1] + 1)):
        raise UnsupportedModelError("it writes positions that are apart, or adds to them")
    order = origin.narrow(axis, index[0], len(index))
    flat = by.reshape(-1, *x.shape[depth:])
    if not order.flatten().equal(torch.arange(len(rows))):
        flat = flat.index_select(0, order.flatten())
    values = flat.reshape(*order.shape, *x.shape[depth:])
    return torch.slice_scatter(x, values, axis, index[0], index[-1] + 1)


@entered("ScatterElements")
def _scatter_elements(
    x: Tensor, indices: Any, by: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Where what is written are whole slices, side by side."""
    place = axis % x.dim()
    table = (torch.as_tensor(indices).long() % x.shape[place]).movedim(place, 0).flatten(1)
    index = table[:, 0].tolist()
    whole = table.shape[1] * x.shape[place] == x.numel() and bool((table == table[:, :1]).all())
    if reduction != "none" or not whole or index != list(range(index[0], index[0] + len(index))):
        raise UnsupportedModelError("it writes no whole slices, or adds to them")
    return torch.slice_scatter(x, by, place, index[0], index[0] + len(index))


@entered("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    batch, channels, height, width = x.shape
    inner = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    moved = inner.permute(0, 3, 4, 1, 5, 2)
    return moved.reshape(batch, -1, height * blocksize, width * blocksize)


@entered("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, height, width = x.shape
    rows, columns = height // blocksize, width // blocksize
    divided = x.reshape(batch, channels, rows, blocksize, columns, blocksize)
    return divided.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, rows, columns)


PADDINGS = {
    "constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular",
}  # fmt: skip
"""ONNX's names of ways to pad, and torch's."""


def sides(pads: Any, axes: Any, rank: int) -> list[tuple[int, int]]:
    """How much a Pad adds before and behind each axis."""
    flat = integers(pads)
    along = [axis % rank for axis in (range(rank) if axes is None else integers(axes))]
    given = dict(zip(along, zip(flat[: len(along)], flat[len(along) :], strict=True), strict=True))
    return [given.get(axis, (0, 0)) for axis in range(rank)]


@entered("Pad")
def _pad(
    x: Tensor, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant"
) -> Tensor:
    around = sides(pads, axes, x.dim())
    if any(map(any, around[:2])):
        raise UnsupportedModelError("it pads the batch or the channels")
    if mode == "wrap":
        for axis, (low, high) in enumerate(around):
            before = [x.narrow(axis, x.shape[axis] - low, low)] if low else []
            behind = [x.narrow(axis, 0, high)] if high else []
            x = torch.cat([*before, x, *behind], axis)
        return x
    flat = flat_pads(around[2:])
    if mode != "constant":
        return F.pad(x, flat, PADDINGS[mode])
    return F.pad(x, flat, value=0.0 if value is None else number(value))
