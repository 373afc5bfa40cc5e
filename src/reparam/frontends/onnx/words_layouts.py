"""What the operations of ONNX are called in torch that move, average or pick elements."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn import functional as F

from reparam.algebra import flat_pads
from reparam.frontends.onnx.in_torch_layouts import PADDINGS, sides
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.numbers import Number
from reparam.frontends.onnx.read import Reader
from reparam.frontends.onnx.words import as_it_is, is_word, pads_of, steps_of
from reparam.reasons import Why

if TYPE_CHECKING:
    from onnx import NodeProto


# ------------------------------------------------------------------ pooling


@is_word("AveragePool")
def _average_pool(read: Reader, proto: NodeProto) -> fx.Node | None:
    given = attributes(proto)
    sizes = tuple(given["kernel_shape"])
    strides, dilations = steps_of(given, len(sizes))
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(sizes) - 1]
    return read.call(
        pool, read.value(proto.input[0]), sizes, strides,
        pads_of(given, sizes, strides, dilations), given.get("ceil_mode", 0),
        given.get("count_include_pad", 0), dilation=dilations,
    )  # fmt: skip


@is_word("MaxPool")
def _max_pool(read: Reader, proto: NodeProto) -> fx.Node:
    """Padding is never the largest; its indices tell positions."""
    if any(map(read.is_read, filter(None, proto.output[1:]))):
        return read.opaque(proto, keeps=True)
    sizes = attributes(proto)["kernel_shape"]
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(sizes) - 1]
    return read.call(pool, read.value(proto.input[0]), tuple(sizes))


@is_word("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(read: Reader, proto: NodeProto) -> fx.Node | None:
    rank = read.rank(proto.input[0])
    if rank is None:
        return None
    reduce: Any = torch.mean if proto.op_type == "GlobalAveragePool" else torch.amax
    return read.call(reduce, read.value(proto.input[0]), tuple(range(2, rank)), keepdim=True)


@is_word("ReduceMean", "ReduceMax", "ReduceSum")
def _reduce(read: Reader, proto: NodeProto) -> fx.Node | None:
    axes, rank = _axes_of(read, proto), read.rank(proto.input[0])
    if not axes or rank is None:
        return None
    reduce: dict[str, Any] = {
        "ReduceMean": torch.mean,
        "ReduceMax": torch.amax,
        "ReduceSum": torch.sum,
    }
    return read.call(
        reduce[proto.op_type], read.value(proto.input[0]), tuple(axis % rank for axis in axes),
        keepdim=bool(attributes(proto).get("keepdims", 1)),
    )  # fmt: skip


@is_word("Resize", "Upsample")
def _resize(read: Reader, proto: NodeProto) -> fx.Node | None:
    """Positions are means of others, but where it may look beyond its input (``tf_crop...``)."""
    before, after = read.shape(proto.input[0]), read.shape(proto.output[0])
    crops = attributes(proto).get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if before is None or crops or len(before) < 3:
        return None
    kept = after is not None and isinstance(before[1], int) and before[1] == after[1]
    if not kept and _scales(read, proto, len(before)).get(1) != 1.0:
        return None
    return read.call(F.interpolate, read.value(proto.input[0]))


def _scales(read: Reader, proto: NodeProto, rank: int) -> dict[int, float]:
    """By axis what it is scaled by, where the size of the result is not known."""
    names = proto.input[1:2] if len(proto.input) == 2 else proto.input[2:3]  # before opset 11
    known = names and names[0] in read.constants and not any(proto.input[3:])
    scales = read.constants.value(names[0]).flatten().tolist() if known else []
    axes = attributes(proto).get("axes", range(len(scales)))
    found = {at % rank: scale for at, scale in zip(axes, scales, strict=False)}
    return {1: 1.0, **found} if scales else {}


# ------------------------------------------------------------------ padding and slices


@is_word("Pad")
def _pad(read: Reader, proto: NodeProto) -> fx.Node | None:
    """Padding of the spatial axes."""
    names = ("x", "pads", "value", "axes")
    given = {**attributes(proto), **dict(zip(names, map(read.argument, proto.input), strict=False))}
    rank, pads, axes = read.rank(proto.input[0]), given.get("pads"), given.get("axes")
    mode, value = PADDINGS.get(given.get("mode", "constant")), given.get("value")
    if rank is None or mode is None or not isinstance(pads, list) or isinstance(axes, fx.Node):
        return None
    pairs = sides(pads, axes, rank)
    if any(pair != (0, 0) for pair in pairs[:2]) or isinstance(value, fx.Node):
        return None
    if any(low < 0 or high < 0 for low, high in pairs):
        return read.opaque(proto, Why.NEGATIVE_PADDING(), keeps=True)
    by = float(value.load()) if isinstance(value, Number) else float(value or 0.0)
    return read.call(F.pad, read.value(proto.input[0]), tuple(flat_pads(pairs[2:])), mode, by)


@is_word("Slice")
def _slice(read: Reader, proto: NodeProto) -> fx.Node | None:
    """A slice of constant ends, each counted from where it holds for every size."""
    reads, shape = list(proto.input[1:]), read.shape(proto.input[0])
    if len(reads) < 2 or shape is None or not all(n in read.constants for n in reads if n):
        return None
    starts, ends, axes, steps = (
        read.constants.integers(reads[k]) if len(reads) > k and reads[k] else None for k in range(4)
    )
    assert starts is not None  # noqa: S101 (a required input)
    assert ends is not None  # noqa: S101 (a required input)
    index, behind = [slice(None)] * len(shape), list(ends)
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        position = (axes[k] if axes else k) % len(shape)
        size, step = shape[position], steps[k] if steps else 1
        if isinstance(size, int) and 0 <= end < size:
            behind[k] = end = end - size  # noqa: PLW2901 (the same end, counted from behind)
        beyond = end > 2**31 - 2 or (isinstance(size, int) and end >= size)
        if step < 1:
            return None
        index[position] = slice(start or None, None if beyond else end, step if step > 1 else None)
    read.stand_in(reads[1], torch.tensor(behind))
    return read.call(operator.getitem, read.value(proto.input[0]), tuple(index))


@is_word("Gather")
def _gather(read: Reader, proto: NodeProto) -> fx.Node | None:
    """Picks by a number, or a list of numbers."""
    source, indices = proto.input
    rank, known = read.rank(source), indices in read.constants
    if rank is None or not known or len(read.constants.shape(indices)) > 1:
        return None
    before = (slice(None),) * (attributes(proto).get("axis", 0) % rank)
    picked = read.constants.integers(indices)
    alone = not read.constants.shape(indices)
    return read.call(
        operator.getitem, read.value(source), (*before, picked[0] if alone else picked)
    )


@is_word("Split")
def _split(read: Reader, proto: NodeProto) -> fx.Node | None:
    """Equal parts, as many as there are results, where nothing else is said."""
    if not all(proto.output):
        return None
    equal = {} if "num_outputs" in attributes(proto) else {"num_outputs": len(proto.output)}
    whole = read.unnamed(as_it_is(read, proto, **equal))
    first, *_ = (read.part(proto, whole, k) for k in range(len(proto.output)))
    return first


@is_word("Expand")
def _expand(read: Reader, proto: NodeProto) -> fx.Node | None:
    """By ones alone it returns its input: exporters write that before a ``Tile``."""
    source, shape = proto.input
    sizes, rank = read.argument(shape), read.rank(source)
    alone = isinstance(sizes, list) and rank is not None and len(sizes) <= rank
    if alone and set(sizes) <= {1}:
        return read.call("contiguous", read.value(source))
    return as_it_is(read, proto)


# ------------------------------------------------------------------ order and axes


@is_word("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshape(read: Reader, proto: NodeProto) -> fx.Node | None:
    if proto.op_type == "Unsqueeze":
        join = read.only_reader(proto.output[0])
        if _is_stack(read, None if join is None else read.graph.node[join]):
            return read.call("contiguous", read.value(proto.input[0]))
    after = read.shape(proto.output[0])
    if after is None or read.shape(proto.input[0]) is None:
        return None
    return read.call("reshape", read.value(proto.input[0]), *after)


@is_word("Concat")
def _concat(read: Reader, proto: NodeProto) -> fx.Node:
    axis, parts = attributes(proto)["axis"], tuple(map(read.value, proto.input))
    if not _is_stack(read, proto):
        return read.call(torch.cat, parts, axis)
    rank = read.rank(proto.input[0])
    return read.call(torch.stack, parts, axis if rank is None else axis % rank)


# ------------------------------------------------------------------ stacks


def _is_stack(read: Reader, join: NodeProto | None) -> bool:
    """Whether a ``Concat`` joins values along an axis that each was given, for sums over it."""
    if join is None or join.op_type != "Concat" or join.output[0] in read.outputs:
        return False
    makers = [_unsqueeze_of(read, name) for name in join.input]
    ranks = {read.rank(maker.input[0]) for maker in makers if maker is not None}
    rank = ranks.pop() if len(ranks) == 1 and None not in makers else None
    if rank is None:
        return False
    readers = [read.graph.node[index] for index in read.readers.get(join.output[0], ())]
    axes = [_axes_of(read, each) for each in (*(m for m in makers if m), *readers)]
    at = attributes(join)["axis"] % (rank + 1)
    if any(named is None or [n % (rank + 1) for n in named] != [at] for named in axes):
        return False
    return bool(readers) and all(map(_adds_up, readers))


def _axes_of(read: Reader, proto: NodeProto) -> list[int] | None:
    """The axes that an operation names, as an attribute or as a constant input."""
    given: dict[str, Any] = attributes(proto)
    if "axes" in given:
        return list(given["axes"])
    if len(proto.input) < 2 or proto.input[1] not in read.constants:
        return None
    return read.constants.integers(proto.input[1])


def _unsqueeze_of(read: Reader, name: str) -> NodeProto | None:
    """The operation that gives a value that is read once its new axis."""
    if read.only_reader(name) is None:
        return None
    made: NodeProto | None = read.makers.get(name)
    if made is None or made.op_type != "Unsqueeze" or made.input[0] in read.constants:
        return None
    return made


def _adds_up(reader: NodeProto) -> bool:
    drops = not attributes(reader).get("keepdims", 1)
    return drops and reader.op_type in {"ReduceSum", "ReduceMean"}
