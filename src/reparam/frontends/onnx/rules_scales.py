"""Rules for sums, and for scales and shifts by constants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reparam import algebra
from reparam.algebra import AffineConv
from reparam.frontends.onnx.lift import OnnxLifter
from reparam.frontends.onnx.rules_layers import paired_bias
from reparam.frontends.onnx.table import reads
from reparam.frontends.scales import doubt, is_per_channel
from reparam.program import Node
from reparam.reasons import Reason, Why

if TYPE_CHECKING:
    from onnx import NodeProto


@reads("Add")
def add(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Add``: a sum of values, a shift by a constant, or the bias of a matrix product."""
    return paired_bias(lifter, proto) or _plus(lifter, proto, 1.0)


@reads("Sub")
def subtract(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Sub``."""
    return _plus(lifter, proto, -1.0)


@reads("Sum")
def add_all(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Sum`` of values."""
    terms = list(proto.input)
    if not all(lifter.is_value(name) for name in terms):
        return None
    return lifter.sum(proto, terms, [1.0] * len(terms))


@reads("Mul")
def multiply(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Mul`` where one side is constant; a gate of two values keeps its axes."""
    left, right = proto.input
    if lifter.is_value(left) and lifter.is_value(right):
        return lifter.opaque(proto, keeps=lifter.shape(left) == lifter.shape(proto.output[0]))
    x, factor = (left, right) if lifter.is_value(left) else (right, left)
    if _ends_activation(lifter, x, factor):
        return lifter.opaque(proto, keeps=True)
    return _affine_map(lifter, proto, x, factor=factor)


@reads("Div")
def divide(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Div`` by a constant."""
    left, right = proto.input
    if not lifter.is_value(left) or right not in lifter.constants:
        return None
    if _ends_activation(lifter, left, right):
        return lifter.opaque(proto, keeps=True)
    return _affine_map(lifter, proto, left, factor=right, invert=True)


@reads("Neg")
def negate(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Neg``."""
    return _affine_map(lifter, proto, proto.input[0], times=-1.0)


def _ends_activation(lifter: OnnxLifter, x: str, factor: str) -> bool:
    """Whether a scale by one number is the last step of an activation, spelt out.

    GELU ends in ``(x * (1 + erf(...))) * 0.5`` and hard swish in ``(x * clip(x + 3)) / 6``. Engines
    know them by all of their steps and run each as one; that is worth more than a factor less.
    """
    if factor not in lifter.constants or math.prod(lifter.constants.shape(factor)) != 1:
        return False
    maker = lifter.maker(x)
    return maker is not None and maker.op_type == "Mul" and all(map(lifter.is_value, maker.input))


def _plus(lifter: OnnxLifter, proto: NodeProto, sign: float) -> Node | None:
    left, right = proto.input
    if lifter.is_value(left) and lifter.is_value(right):
        return lifter.sum(proto, [left, right], [1.0, sign])
    if lifter.is_value(left):
        return _affine_map(lifter, proto, left, shift=right, shift_times=sign)
    return _affine_map(lifter, proto, right, times=sign, shift=left)


def _affine_map(  # noqa: PLR0913 (the parts of one affine map)
    lifter: OnnxLifter, proto: NodeProto, x: str, *, factor: str | None = None,
    shift: str | None = None, times: float = 1.0, shift_times: float = 1.0, invert: bool = False,
) -> Node | None:  # fmt: skip
    """Lift ``times * factor * x + shift_times * shift`` with constant factor and shift."""
    constants = lifter.constants
    numbers = [name for name in (factor, shift) if name is not None]
    if not all(name in constants and constants.is_floating(name) for name in numbers):
        return None
    if times == 1.0 and _changes_nothing(lifter, x, factor, shift):
        return lifter.alias(proto, x)
    channels, axis = lifter.channels(x), lifter.axis(x)
    doubts = [_doubt(lifter, name, x) for name in numbers]
    if channels is None or axis is None or any(doubts):
        return lifter.opaque(proto, next(filter(None, doubts), None))

    def make() -> AffineConv:
        scale = times * _per_channel(lifter, factor, channels, invert=invert)
        moved = None if shift is None else shift_times * _per_channel(lifter, shift, channels)
        return algebra.scale(scale, moved)

    # Single numbers are a part of the operation, as in torch: activations are made of them.
    sizes = [constants.value(name).numel() for name in numbers]
    return lifter.diagonal(
        proto, x, make, "scale" if shift is None else "shift", axis=axis,
        stored=sum(size for size in sizes if size > 1), reads=numbers,
    )  # fmt: skip


def _per_channel(
    lifter: OnnxLifter, name: str | None, channels: int, *, invert: bool = False
) -> Tensor:
    if name is None:
        return torch.ones(channels, dtype=torch.float64)
    value = lifter.constants.value(name).reshape(-1).expand(channels)
    return 1 / value if invert else value


def _changes_nothing(lifter: OnnxLifter, x: str, factor: str | None, shift: str | None) -> bool:
    """Whether a map is the identity: times one and plus zero, without growing by broadcasting."""
    for name, neutral in ((factor, 1.0), (shift, 0.0)):
        if name is None:
            continue
        single = math.prod(lifter.constants.shape(name)) == 1 and not _adds_axes(lifter, name, x)
        if not (single or _is_per_channel(lifter, name, x)):
            return False
        if not bool((lifter.constants.value(name) == neutral).all()):
            return False
    return True


def _doubt(lifter: OnnxLifter, name: str, x: str) -> Reason | None:
    """Why a constant may not act on each channel of a value by itself."""
    if _is_per_channel(lifter, name, x):
        return None
    shape = lifter.constants.shape(name)
    if lifter.channels(x) is None or lifter.axis(x) is None:
        return doubt(shape, None, None)
    return Why.NOT_PER_CHANNEL(shape=str(shape))


def _is_per_channel(lifter: OnnxLifter, name: str, x: str) -> bool:
    """Whether a constant acts on each channel of a value by itself and broadcasts nothing."""
    channels, axis = lifter.channels(x), lifter.axis(x)
    if channels is None or axis is None or _adds_axes(lifter, name, x):
        return False
    shape = lifter.constants.shape(name)
    while shape and shape[0] == 1 and len(shape) > -axis:
        shape = shape[1:]
    return is_per_channel(shape, channels, axis)


def _adds_axes(lifter: OnnxLifter, name: str, x: str) -> bool:
    """Whether a value may have fewer dimensions than a constant, and so grow by broadcasting."""
    rank, axis = lifter.rank(x), lifter.axis(x)
    if rank is None:
        # Before channels that are not last stands a batch; others may be all that there is.
        rank = 1 - axis if axis is not None and axis < -1 else 1
    return len(lifter.constants.shape(name)) > rank
