"""Read the arguments of traced operations, and what their neighbours say of a value."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from reparam.frontends.torch.lift import Lifter

CONVOLUTIONS: dict[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
"""Functional convolutions and their numbers of spatial dimensions."""

TRANSPOSED: dict[Any, int] = {F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3}
"""The same for transposed ones."""


def first(node: fx.Node) -> fx.Node:
    """The first tensor argument of an operation."""
    value = node.args[0] if node.args else node.kwargs["input"]
    if not isinstance(value, fx.Node):
        msg = f"{node.target} is called without a tensor as its first argument"
        raise TypeError(msg)
    return value


def bind(node: fx.Node, names: tuple[str, ...], defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    """Read positional and keyword arguments by name, or by the name that NumPy has for it."""
    given = dict(zip(names, node.args, strict=False))
    named = {_AS_IN_NUMPY.get(k, k) if k not in names else k: v for k, v in node.kwargs.items()}
    given.update({k: v for k, v in named.items() if k in names})
    return tuple(given.get(name, default) for name, default in zip(names, defaults, strict=True))


_AS_IN_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x2": "other"}


def is_literal(value: Any) -> bool:
    """Whether an argument holds no traced value."""
    if isinstance(value, list | tuple):
        return all(is_literal(v) for v in value)
    return not isinstance(value, fx.Node)


def channels_of(lifter: Lifter, source: fx.Node, node: fx.Node) -> int | None:
    """Channels of a value: known from what made it, or from a layer that reads it."""
    known = lifter.known(source).channels
    if known is not None:
        return known
    for reader in (*source.users, *node.users):
        if reader.op == "call_module":
            module = lifter.module(reader)
            for name in ("in_channels", "num_features"):
                value = getattr(module, name, None)
                if isinstance(value, int):
                    return value
        elif reader.target in CONVOLUTIONS and lifter.constants.is_tensor(
            reader.args[1:2] and reader.args[1]
        ):
            shape = lifter.constants.shape(reader.args[1])  # type: ignore[arg-type]
            groups = bind(reader, ("i", "w", "b", "s", "p", "d", "groups"), (1,) * 7)[-1]
            return shape[1] * int(groups)
    return None


def rank_from_readers(lifter: Lifter, node: fx.Node) -> int | None:
    """Number of dimensions of a value that a convolution reads, too."""
    axis = axis_from_readers(lifter, node)
    return None if axis is None else 1 - axis


def axis_from_readers(lifter: Lifter, node: fx.Node) -> int | None:
    """Channel axis of a value, from the end, as a layer that reads it says."""
    for reader in node.users:
        if reader.op == "call_module":
            module = lifter.module(reader)
            for dims, kinds in enumerate(_LAYERS, start=1):
                if isinstance(module, kinds):
                    return -(dims + 1)
            for dims, norm in ((2, nn.BatchNorm2d), (3, nn.BatchNorm3d)):
                if isinstance(module, norm):
                    return -(dims + 1)
        elif reader.target in CONVOLUTIONS | TRANSPOSED:
            return -((CONVOLUTIONS | TRANSPOSED)[reader.target] + 1)
    return None


_LAYERS = (
    (nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d),
    (nn.Conv3d, nn.ConvTranspose3d),
)  # fmt: skip
"""Layers that read channels and as many spatial dimensions as their place here says."""

_NEAR = 6
"""Operations to look at for a layer that tells where the channels of a value are."""

_ELEMENTWISE = frozenset({
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul,
    torch.div, "add", "sub", "mul", "div", "contiguous", "clone",
})  # fmt: skip


def axis_further_on(lifter: Lifter, node: fx.Node) -> int | None:
    """Channel axis of a value as a layer says that reads it behind scales and shifts."""
    waiting, seen = [node], 0
    while waiting and seen < _NEAR:
        value, seen = waiting.pop(0), seen + 1
        axis = axis_from_readers(lifter, value)
        if axis is not None:
            return axis
        waiting += [
            user for user in value.users if user.target in _ELEMENTWISE
            and all(read is value or read in lifter.constants for read in user.all_input_nodes)
        ]  # fmt: skip
    return None
