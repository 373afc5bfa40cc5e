"""Rules for operations that take channels apart or move them: parts, picks, pixel shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reparam.frontends.onnx.lift import OnnxLifter
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.table import reads
from reparam.program import Node

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["picked"]


@reads("Split")
def split(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Split`` along the channels: each value is some of them."""
    source = proto.input[0]
    channels = lifter.channels(source)
    if channels is None or not _is_along_channels(lifter, proto, 0):
        return None
    start, parts = 0, []
    for name in proto.output:
        shape, axis = lifter.shape(name), lifter.axis(source)
        size = None if shape is None or axis is None else shape[axis]
        if not name or not isinstance(size, int):
            return None
        parts.append((name, range(start, start + size)))
        start += size
    if start != channels:
        return None
    for name, own in parts[1:]:
        lifter.nodes[name] = lifter.part(proto, name, own)
    return lifter.part(proto, *parts[0])


@reads("Gather")
def gather(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Gather`` of channels, by a list of them."""
    source, indices = proto.input
    channels = lifter.channels(source)
    if channels is None or indices not in lifter.constants:
        return None
    if len(lifter.constants.shape(indices)) != 1 or not _is_along_channels(lifter, proto, 0):
        return None
    return picked(lifter, proto, [n % channels for n in lifter.constants.integers(indices)])


@reads("Tile")
def tile(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Tile`` along the channels: all of them, several times one after another."""
    source, repeats = proto.input[:2]
    channels, axis, rank = lifter.channels(source), lifter.axis(source), lifter.rank(source)
    if channels is None or axis is None or rank is None or repeats not in lifter.constants:
        return None
    times = lifter.constants.integers(repeats)
    count = times.pop(axis + rank)
    return picked(lifter, proto, [*range(channels)] * count) if set(times) <= {1} else None


@reads("Expand")
def expand(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Expand`` of one channel to equal ones; by ones alone, it returns its input.

    Exporters write the latter before a ``Tile``.
    """
    source, shape = proto.input
    if not lifter.is_value(source) or shape not in lifter.constants:
        return None
    channels, axis, rank = lifter.channels(source), lifter.axis(source), lifter.rank(source)
    if rank is None:
        return None
    sizes = lifter.constants.integers(shape)
    if len(sizes) > rank:
        return None
    if set(sizes) <= {1}:
        return lifter.alias(proto, source)
    if channels != 1 or axis is None or len(sizes) < -axis:
        return None
    count = sizes.pop(axis)
    return picked(lifter, proto, [0] * count) if set(sizes) <= {1} else None


def picked(lifter: OnnxLifter, proto: NodeProto, channels: Sequence[int]) -> Node | None:
    """Some of the channels of what an operation reads, in an order."""
    origins = [(channel,) for channel in channels]
    source = proto.input[0]
    return lifter.routed(proto, source, origins, lifter.axis(source)) if origins else None


@reads("DepthToSpace")
def depth_to_space(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``DepthToSpace``: each channel is made of ``b * b``, next to each other or ``C`` apart."""
    given, channels = attributes(proto), lifter.channels(proto.input[0])
    block = given["blocksize"] ** 2
    if channels is None or not _are_images(lifter, proto) or channels % block:
        return None
    width = channels // block
    if given.get("mode", "DCR") in {"CRD", b"CRD"}:
        origins = [range(c * block, (c + 1) * block) for c in range(width)]
    else:
        origins = [range(c, channels, width) for c in range(width)]
    return lifter.routed(proto, proto.input[0], origins, -3)


@reads("SpaceToDepth")
def space_to_depth(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``SpaceToDepth``: ``b * b`` channels are made of each one, ``C`` apart."""
    channels = lifter.channels(proto.input[0])
    if channels is None or not _are_images(lifter, proto):
        return None
    block = attributes(proto)["blocksize"] ** 2
    return lifter.routed(
        proto, proto.input[0], [(c,) for _ in range(block) for c in range(channels)], -3
    )


def _is_along_channels(lifter: OnnxLifter, proto: NodeProto, default: int) -> bool:
    rank, axis = lifter.rank(proto.input[0]), lifter.axis(proto.input[0])
    along = attributes(proto).get("axis", default)
    return rank is not None and axis is not None and along % rank == axis + rank


def _are_images(lifter: OnnxLifter, proto: NodeProto) -> bool:
    return lifter.axis(proto.input[0]) == -3 and lifter.rank(proto.input[0]) == 4
