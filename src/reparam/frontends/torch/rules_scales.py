"""Rules for sums, and for scales and shifts by constants."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from reparam import algebra
from reparam.algebra import AffineConv
from reparam.frontends.scales import doubt
from reparam.frontends.torch.arguments import axis_further_on, bind, channels_of, first
from reparam.frontends.torch.effects import name_of
from reparam.frontends.torch.lift import Lifter, scalar
from reparam.frontends.torch.table import reads
from reparam.program import Node


@reads(
    operator.add,
    operator.iadd,
    torch.add,
    "add",
    "add_",
    "__add__",
    "__radd__",
    "__iadd__",
    any_arguments=True,
)
def add(lifter: Lifter, node: fx.Node) -> Node | None:
    """``a + b``: a sum of values, or a shift by a constant."""
    return _plus(lifter, node, 1.0)


@reads(
    operator.sub,
    operator.isub,
    torch.sub,
    torch.subtract,
    "sub",
    "sub_",
    "subtract",
    any_arguments=True,
)
def subtract(lifter: Lifter, node: fx.Node) -> Node | None:
    """``a - b``."""
    return _plus(lifter, node, -1.0)


def _plus(lifter: Lifter, node: fx.Node, sign: float) -> Node | None:
    left, right, alpha = bind(node, ("input", "other", "alpha"), (None, None, 1))
    factor = scalar(alpha)
    if factor is None:
        return None
    factor *= sign
    if lifter.is_value(left) and lifter.is_value(right):
        return lifter.sum(node, [left, right], [1.0, factor])
    if lifter.is_value(left):
        return _affine_map(lifter, node, left, shift=right, shift_times=factor)
    if lifter.is_value(right):
        return _affine_map(lifter, node, right, times=factor, shift=left)
    return None


@reads(torch.rsub, any_arguments=True)
def reverse_subtract(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.rsub(a, b)``, which is ``b - a``."""
    left, right, alpha = bind(node, ("input", "other", "alpha"), (None, None, 1))
    factor = scalar(alpha)
    if factor is None or not lifter.is_value(left):
        return None
    if lifter.is_value(right):
        return lifter.sum(node, [right, left], [1.0, -factor])
    return _affine_map(lifter, node, left, times=-factor, shift=right)


@reads(
    operator.mul,
    operator.imul,
    torch.mul,
    torch.multiply,
    "mul",
    "mul_",
    "multiply",
    any_arguments=True,
)
def multiply(lifter: Lifter, node: fx.Node) -> Node | None:
    """``a * b`` where one of them is constant."""
    left, right = bind(node, ("input", "other"), (None, None))
    if lifter.is_value(left) and lifter.is_value(right):
        return lifter.opaque(node, keeps=lifter.keeps_shape(node, left))
    if not lifter.is_value(left) and not lifter.is_value(right):
        return None
    x, factor = (left, right) if lifter.is_value(left) else (right, left)
    if _ends_activation(lifter, x, factor):
        return lifter.opaque(node, keeps=True)
    return _affine_map(lifter, node, x, factor=factor)


@reads(
    operator.truediv,
    operator.itruediv,
    torch.div,
    torch.divide,
    torch.true_divide,
    "div",
    "div_",
    "divide",
    "true_divide",
    any_arguments=True,
)
def divide(lifter: Lifter, node: fx.Node) -> Node | None:
    """``a / b`` where ``b`` is constant."""
    left, right, mode = bind(node, ("input", "other", "rounding_mode"), (None, None, None))
    if mode is not None or not lifter.is_value(left) or lifter.is_value(right):
        return None
    if _ends_activation(lifter, left, right):
        return lifter.opaque(node, keeps=True)
    return _affine_map(lifter, node, left, factor=right, invert=True)


@reads(operator.neg, torch.neg, torch.negative, "neg", "neg_", "negative")
def negate(lifter: Lifter, node: fx.Node) -> Node | None:
    """``-a``."""
    return _affine_map(lifter, node, first(node), times=-1.0)


@reads(sum, any_arguments=True)
def add_all(lifter: Lifter, node: fx.Node) -> Node | None:
    """``sum(values)``."""
    terms: Any = node.args[0]
    if not isinstance(terms, list | tuple) or not all(map(lifter.is_value, terms)):
        return None
    return lifter.sum(node, list(terms), [1.0] * len(terms))


def _ends_activation(lifter: Lifter, x: fx.Node, factor: Any) -> bool:
    """Whether a scale by one number is the last step of an activation, spelt out.

    GELU ends in ``(x * (1 + erf(...))) * 0.5`` and hard swish in ``(x * clip(x + 3)) / 6``. Engines
    know them by all of their steps and run each as one; that is worth more than a factor less.
    """
    if not lifter.keeps_activations or not lifter.constants.is_tensor(factor):
        return False
    single = math.prod(lifter.constants.shape(factor)) == 1
    return single and x.target is torch.mul and all(map(lifter.is_value, x.args))


@reads(torch.lerp, "lerp")
def lerp(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.lerp(a, b, w)`` with a number: ``(1 - w) a + w b``."""
    left, right, weight = bind(node, ("input", "end", "weight"), (None, None, None))
    factor = scalar(weight)
    if factor is None or not lifter.is_value(left) or not lifter.is_value(right):
        return None
    return lifter.sum(node, [left, right], [1 - factor, factor])


@reads(
    torch.addcmul, torch.addcdiv, "addcmul", "addcdiv", "addcmul_", "addcdiv_", any_arguments=True
)
def add_product(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.addcmul(b, x, s)``, which is ``b + x * s``, and ``addcdiv``: ``b + x / s``."""
    shift, left, right, value = bind(
        node, ("input", "tensor1", "tensor2", "value"), (None, None, None, 1)
    )
    times, divides = scalar(value), "div" in name_of(node.target)
    if lifter.is_value(right) and not divides:
        left, right = right, left
    varies = lifter.is_value(shift) or lifter.is_value(right) or not lifter.is_value(left)
    if times is None or varies:
        return None
    return _affine_map(lifter, node, left, factor=right, invert=divides, times=times, shift=shift)


def _affine_map(  # noqa: PLR0913 (the parts of one affine map)
    lifter: Lifter, node: fx.Node, x: Any, *, factor: Any = None, shift: Any = None,
    times: float = 1.0, shift_times: float = 1.0, invert: bool = False,
) -> Node | None:  # fmt: skip
    """Lift ``times * factor * x + shift_times * shift`` with constant factor and shift."""
    if times == 1.0 and _changes_nothing(factor, shift):
        return lifter.alias(node, x)
    tensors = [t for t in (factor, shift) if lifter.constants.is_tensor(t)]
    single = all(math.prod(lifter.constants.shape(t)) == 1 for t in tensors)
    channels, axis = _channels_beside(lifter, node, x, single=single)
    rank = lifter.known(x).rank
    doubts = [doubt(lifter.constants.shape(t), channels, axis, rank) for t in tensors]
    if channels is None or axis is None or any(doubts):
        return lifter.opaque(node, next(filter(None, doubts), None))
    if any(scalar(v) is None for v in (factor, shift) if v is not None and v not in tensors):
        return lifter.opaque(node)

    def per_channel(value: Any, default: float) -> Tensor:
        if lifter.constants.is_tensor(value):
            tensor = lifter.constants.value(value).to(torch.float64)
        else:
            tensor = torch.tensor(default if value is None else float(value), dtype=torch.float64)
        return tensor.reshape(-1).expand(channels)

    def make() -> AffineConv:
        scale = per_channel(factor, 1.0)
        scale = times * (1 / scale if invert else scale)
        return algebra.scale(
            scale, None if shift is None else shift_times * per_channel(shift, 0.0)
        )

    return lifter.diagonal(
        node, x, make, "scale" if shift is None else "shift", axis=axis,
        stored=lifter.constants.stored(tensors), reads=lifter.constants.reads(tensors),
    )  # fmt: skip


def _channels_beside(
    lifter: Lifter, node: fx.Node, x: fx.Node, *, single: bool
) -> tuple[int | None, int | None]:
    """Channels of a value and their axis, as it is known by itself or by a layer further on.

    Where an operation has a number for each channel, the layer behind it may read more than there
    are before it: one channel is spread over all of them. An example shows how many there are.
    """
    channels, axis = lifter.known(x).channels, lifter.nodes[x].axis
    if axis is None:
        axis = axis_further_on(lifter, node) or axis_further_on(lifter, x)
    if channels is None and axis is not None:
        shown = lifter.trace.values.get(x)
        if isinstance(shown, Tensor) and shown.dim() >= -axis:
            channels = shown.shape[axis]
        elif single:
            channels = channels_of(lifter, x, node)
    return channels, axis


def _changes_nothing(factor: Any, shift: Any) -> bool:
    nothing_times = factor is None or scalar(factor) == 1.0
    return nothing_times and (shift is None or scalar(shift) == 0.0)
