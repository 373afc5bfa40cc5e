"""Rules for operations that move or average the elements of each channel by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.frontends.builder import joined_channels
from reparam.frontends.onnx.lift import OnnxLifter
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.rules_stacks import axes_of, total, unsqueezed
from reparam.frontends.onnx.shapes import Shape, channel_axis_after, same_size
from reparam.frontends.onnx.table import reads
from reparam.program import Node
from reparam.reasons import Reason

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["averaged_positions"]


def averaged_positions(lifter: OnnxLifter, proto: NodeProto, reason: Reason) -> Node:
    """An average pooling of which some windows have fewer elements; ``reason`` says so."""
    axis, rank = lifter.axis(proto.input[0]), lifter.rank(proto.input[0])
    if axis is None or rank is None or axis + rank != 1:
        return lifter.opaque(proto, reason, keeps=True)
    return lifter.layout(proto, proto.input[0], axis, reason=reason)


@reads("Resize", "Upsample")
def resize(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Resize`` of positions: each is a weighted mean of others, with weights that sum to one.

    Not so where it may look beyond its input and finds a number of its own there
    (``tf_crop_and_resize``).
    """
    source = proto.input[0]
    before, after, axis = lifter.shape(source), lifter.shape(proto.output[0]), lifter.axis(source)
    crops = attributes(proto).get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if before is None or axis is None or crops or axis == -1:
        return None
    kept = after is not None and isinstance(before[axis], int) and before[axis] == after[axis]
    return lifter.layout(proto, source, axis) if kept or _scale_of(lifter, proto, axis) else None


def _scale_of(lifter: OnnxLifter, proto: NodeProto, axis: int) -> bool:
    """Whether an axis is scaled by one, where the size of the result is not known."""
    names = proto.input[1:2] if len(proto.input) == 2 else proto.input[2:3]  # before opset 11
    known = names and names[0] in lifter.constants and not any(proto.input[3:])
    scales = lifter.constants.value(names[0]).flatten().tolist() if known else []
    axes = attributes(proto).get("axes", range(len(scales)))
    rank = lifter.rank(proto.input[0])
    found = {at % (rank or 1): scale for at, scale in zip(axes, scales, strict=False)}
    return bool(scales) and rank is not None and found.get(axis + rank, 1.0) == 1.0


@reads("MaxPool", "GlobalMaxPool")
def max_pool(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``MaxPool`` whose indices nothing reads, and ``GlobalMaxPool``; padding is never largest."""
    source = proto.input[0]
    rank, axis = lifter.rank(source), lifter.axis(source)
    indices = any(n in lifter.readers or n in lifter.outputs for n in proto.output[1:] if n)
    if rank is None or axis is None or axis + rank != 1 or indices:
        return lifter.opaque(proto, keeps=True)
    return lifter.layout(proto, source, axis, monotone=True)


@reads("GlobalAveragePool", "ReduceMean")
def spatial_mean(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``GlobalAveragePool`` and ``ReduceMean`` over other axes than the channels'.

    A mean over positions returns a constant for a constant, and scales with its input, so a scale
    and shift per channel behind it can stand before it: to the planner it is a matter of layout.
    """
    return total(lifter, proto) or _reduced(lifter, proto, monotone=False)


@reads("ReduceMax")
def spatial_maximum(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``ReduceMax`` over other axes than the channels'."""
    return _reduced(lifter, proto, monotone=True)


def _reduced(lifter: OnnxLifter, proto: NodeProto, *, monotone: bool) -> Node | None:
    source = proto.input[0]
    rank, axis = lifter.rank(source), lifter.axis(source)
    if rank is None or axis is None:
        return None
    given = attributes(proto)
    keeps = bool(given.get("keepdims", 1))
    if proto.op_type == "GlobalAveragePool":
        reduced = set(range(2, rank))
    else:
        named = axes_of(lifter, proto, 1)
        if named is None:
            return None
        reduced = {value % rank for value in named}
    if not reduced or axis + rank in reduced:
        return None
    behind = 0 if keeps else sum(1 for d in reduced if d > axis + rank)
    return lifter.layout(proto, proto.input[0], axis + behind, monotone=monotone)


@reads("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def reshape(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Reshape``, ``Flatten``, ``Squeeze``, ``Unsqueeze`` of images or tokens.

    Those that leave the channels an axis of their own are a matter of layout. Where channels and
    positions become one axis, each feature is of one channel. ``(batch, groups, channels / groups,
    ...)`` divides the channels among two axes; they are together again where these two are one.
    """
    source = proto.input[0]
    stack = unsqueezed(lifter, proto) if proto.op_type == "Unsqueeze" else None
    before, after = lifter.shape(source), lifter.shape(proto.output[0])
    axis = lifter.axis(source)
    if stack is not None or before is None or after is None:
        return stack
    if axis is not None:
        moved = channel_axis_after(before, after, axis)
        if moved is not None:
            return lifter.layout(proto, source, moved)
    same_batch = min(len(before), len(after)) > 1 and same_size(before[:1], after[:1])
    if not same_batch:
        return None
    if lifter.facts_of(lifter.nodes[source]).digits:
        return _joined(lifter, proto, len(before), after)
    return _reshaped(lifter, proto, after) if axis == 1 - len(before) else None


def _reshaped(lifter: OnnxLifter, proto: NodeProto, after: Shape) -> Node | None:
    """Reshape ``(batch, channels, *positions)`` into something of the same batch."""
    source, first = proto.input[0], after[1]
    channels = lifter.channels(source)
    if channels is None or not isinstance(first, int):
        return None
    if len(after) == 2 and first % channels == 0:
        origins = [(c,) for c in range(channels) for _ in range(first // channels)]
        return lifter.routed(proto, source, origins, -1)
    if len(after) > 2 and isinstance(after[2], int) and first * after[2] == channels:
        digits = ((1 - len(after), first), (2 - len(after), after[2]))
        return lifter.layout(proto, source, None, digits=digits)
    return None


def _joined(lifter: OnnxLifter, proto: NodeProto, rank: int, after: Shape) -> Node | None:
    """Channels that stand on two axes become one axis, in the order of these."""
    facts = lifter.facts_of(lifter.nodes[proto.input[0]])
    order = joined_channels(facts.digits, rank)
    if order is None or after[1] != len(order):
        return None
    return lifter.routed(proto, proto.input[0], order, 1 - len(after))


@reads("Transpose")
def transpose(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Transpose``."""
    source = proto.input[0]
    rank, axis = lifter.rank(source), lifter.axis(source)
    digits = lifter.facts_of(lifter.nodes[source]).digits
    if rank is None or (axis is None and not digits):
        return None
    order = [at % rank for at in attributes(proto).get("perm", list(range(rank))[::-1])]
    moved = None if axis is None else order.index(axis + rank) - rank
    there = tuple((order.index(at + rank) - rank, size) for at, size in digits)
    return lifter.layout(proto, source, moved, digits=there)
