"""Rules for operations that move or pass on values: pooling, padding, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from reparam.frontends.builder import Pads
from reparam.frontends.onnx.lift import OnnxLifter
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.rules_layers import pads_of
from reparam.frontends.onnx.rules_layouts import averaged_positions
from reparam.frontends.onnx.rules_parts import picked
from reparam.frontends.onnx.rules_stacks import stacked
from reparam.frontends.onnx.table import reads
from reparam.program import Node
from reparam.reasons import Why

if TYPE_CHECKING:
    from onnx import NodeProto


_PADDING_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""ONNX's names of paddings that are not zeros, and torch's."""

_PADS_AS_INPUT = 11
"""Opset from which Pad reads its pads, and Slice its ends, from inputs."""


@reads("AveragePool")
def average_pool(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``AveragePool`` that divides by the size of its window everywhere."""
    given, source = attributes(proto), proto.input[0]
    sizes = tuple(given["kernel_shape"])
    dims = len(sizes)
    strides = tuple(given.get("strides", (1,) * dims))
    dilations = tuple(given.get("dilations", (1,) * dims))
    pads = pads_of(proto, sizes, strides, dilations)
    counted, reason = given.get("count_include_pad", 0), None
    if given.get("ceil_mode", 0):
        reason = Why.CEIL_MODE(value=1)
    elif pads is None:
        reason = Why.AUTO_PAD(value=given["auto_pad"])
    elif not counted and any(pair != (0, 0) for pair in pads):
        reason = Why.UNCOUNTED_PADDING(value=0)
    if pads is None or reason is not None:
        assert reason is not None  # noqa: S101 (pads that are not known have one)
        if counted:
            return lifter.opaque(proto, reason, keeps=True)
        # Windows that are cut off still average what is left of them.
        return averaged_positions(lifter, proto, reason)
    channels = lifter.channels(source)
    if channels is None:
        return lifter.opaque(proto, keeps=True)
    return lifter.average(proto, source, channels, sizes, strides, pads, dilations)


@reads("Pad")
def pad(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Pad`` of the spatial axes: with zeros an operator, with something else a new value."""
    given, source = attributes(proto), proto.input[0]
    mode = given.get("mode", "constant")
    pairs = _spatial_pads(lifter, proto)
    axis = lifter.axis(source)
    if pairs is None or axis is None or mode not in {"constant", *_PADDING_MODES}:
        return None
    if any(low < 0 or high < 0 for low, high in pairs):
        return lifter.opaque(proto, Why.NEGATIVE_PADDING(), keeps=True)
    if mode == "constant":
        zeros = _pad_value(lifter, proto) == 0.0
        return _zero_pad(lifter, proto, pairs) if zeros else None
    return lifter.repadded(proto, pairs, _PADDING_MODES[mode])


@reads("Slice")
def slice_(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Slice`` that takes off a margin of the spatial axes: padding by a negative number."""
    reads = list(proto.input[1:])
    shape, axis = lifter.shape(proto.input[0]), lifter.axis(proto.input[0])
    if len(reads) < 2 or not all(name in lifter.constants for name in reads if name):
        return None
    if shape is None or axis is None or axis + len(shape) != 1:
        return None
    starts, ends, axes, steps = (
        lifter.constants.integers(reads[k]) if len(reads) > k and reads[k] else None
        for k in range(4)
    )
    assert starts is not None  # noqa: S101 (a required input)
    assert ends is not None  # noqa: S101 (a required input)
    pairs, behind = [(0, 0)] * len(shape), list(ends)
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        position = (axes[k] if axes else k) % len(shape)
        size, step = shape[position], steps[k] if steps else 1
        if isinstance(size, int) and 0 <= end < size:
            behind[k] = end = end - size  # noqa: PLW2901 (the same end, counted from behind)
        beyond = end > 2**31 - 2 or (isinstance(size, int) and end >= size)
        if step != 1 or start < 0 or not (beyond or end < 0):
            return None
        pairs[position] = (-start, 0 if beyond else end)
    if any(pair != (0, 0) for pair in pairs[:2]):
        return _some_channels(lifter, proto, pairs)
    lifted = _zero_pad(lifter, proto, tuple(pairs[2:]))
    if lifted is not None:
        lifter.stand_ins[lifted.order] = {reads[1]: torch.tensor(behind)}
    return lifted


def _some_channels(
    lifter: OnnxLifter, proto: NodeProto, pairs: Sequence[tuple[int, int]]
) -> Node | None:
    """A slice of the channels alone, all of whose sizes are known."""
    channels = lifter.channels(proto.input[0])
    low, high = pairs[1]
    if channels is None or any(pair != (0, 0) for k, pair in enumerate(pairs) if k != 1):
        return None
    return picked(lifter, proto, range(-low, channels + high))


@reads("Identity")
def pass_on(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Identity``."""
    return lifter.alias(proto, proto.input[0])


@reads("Cast")
def cast(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Cast`` to the type that its input has, or that another casts it to."""
    same = lifter.shapes.types.get(proto.input[0]) == attributes(proto)["to"]
    if same:
        return lifter.alias(proto, proto.input[0])
    return lifter.again(proto) or lifter.opaque(proto, keeps=True)


@reads("Dropout")
def dropout(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Dropout`` outside of training, whose mask nothing reads."""
    training = proto.input[2] if len(proto.input) > 2 else ""
    if training:
        constants = lifter.constants
        if training not in constants or bool(constants.value(training).any()):
            return lifter.opaque(proto, Why.DROPOUT_IN_TRAINING(), keeps=True)
    masks = [name for name in proto.output[1:] if name in lifter.readers or name in lifter.outputs]
    return lifter.opaque(proto, keeps=True) if masks else lifter.alias(proto, proto.input[0])


@reads(
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "Gelu",
    "Mish",
    "Swish",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "HardSwish",
    "Softplus",
    "Softsign",
    "Clip",
    "Erf",
    "ThresholdedRelu",
    "Abs",
    "Exp",
    "Sqrt",
)
def elementwise(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """An activation: nothing folds through it, but axes stay in place."""
    return lifter.again(proto) or lifter.opaque(proto, keeps=True)


@reads("Concat")
def concat(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Concat`` along the channel axis, or along one of its own."""
    if not all(lifter.is_value(name) for name in proto.input):
        return None
    stack = stacked(lifter, proto)
    if stack is not None:
        return stack
    # A part may not know its axis as that of its channels.
    axes = {lifter.axis(name) for name in proto.input} - {None}
    rank = next((r for name in proto.input if (r := lifter.rank(name)) is not None), None)
    axis = axes.pop() if len(axes) == 1 else None
    along = attributes(proto)["axis"]
    if axis is None or (along >= 0 and rank is None):
        return None
    return lifter.concat(proto, proto.input, axis) if _from_end(along, rank) == axis else None


def _zero_pad(lifter: OnnxLifter, proto: NodeProto, pairs: Pads) -> Node | None:
    channels = lifter.channels(proto.input[0])
    return None if channels is None else lifter.zero_pad(proto, proto.input[0], channels, pairs)


def _spatial_pads(lifter: OnnxLifter, proto: NodeProto) -> Pads | None:
    """How much is added to each spatial axis; None where others are padded or it is not known."""
    rank, axis = lifter.rank(proto.input[0]), lifter.axis(proto.input[0])
    if rank is None or axis is None or axis + rank != 1:
        return None
    if lifter.opset < _PADS_AS_INPUT:
        flat = attributes(proto).get("pads")
    else:
        known = proto.input[1] in lifter.constants
        flat = lifter.constants.integers(proto.input[1]) if known else None
    if flat is None:
        return None
    named = list(range(rank))
    if len(proto.input) > 3 and proto.input[3]:
        if proto.input[3] not in lifter.constants:
            return None
        named = [value % rank for value in lifter.constants.integers(proto.input[3])]
    pairs = [(0, 0)] * rank
    for k, position in enumerate(named):
        pairs[position] = (flat[k], flat[k + len(named)])
    return None if any(pair != (0, 0) for pair in pairs[:2]) else tuple(pairs[2:])


def _pad_value(lifter: OnnxLifter, proto: NodeProto) -> float | None:
    if lifter.opset < _PADS_AS_INPUT:
        return float(attributes(proto).get("value", 0.0))
    if len(proto.input) < 3 or not proto.input[2]:
        return 0.0
    if proto.input[2] not in lifter.constants:
        return None
    return float(lifter.constants.value(proto.input[2]).reshape(-1)[0])


def _from_end(axis: int, rank: int | None) -> int:
    return axis if axis < 0 else axis - (rank or 0)
