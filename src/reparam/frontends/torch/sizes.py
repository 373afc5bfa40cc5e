"""What the sizes that a forward computes with stand for: numbers that never change, and batches."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from reparam.frontends.torch.arguments import bind
from reparam.frontends.torch.effects import metadata_read
from reparam.frontends.torch.lift import Lifter
from reparam.program import Alias

_NEAR = 8
"""Operations to look at for a layer that tells how many features it reads."""


def number(lifter: Lifter, size: object) -> int | None:
    """A size that is the same for every input: a number, or made of channels of layers."""
    if isinstance(size, int):
        return size
    if not isinstance(size, fx.Node):
        return None
    if size.target in _ARITHMETIC:
        left, right = (number(lifter, part) for part in size.args)
        known = left is not None and right is not None
        return _ARITHMETIC[size.target](left, right) if known else None
    measured = measured_in(lifter, size)
    if measured is None:
        return None
    value, dim = measured
    rank, axis = lifter.known(value).rank, lifter.nodes[value].axis
    at_channels = rank is not None and axis is not None and dim % rank == axis + rank
    return lifter.known(value).channels if at_channels else None


def is_batch_of(lifter: Lifter, size: object, x: fx.Node) -> bool:
    """Whether a size is that of the first dimension of ``x``, whatever the input."""
    measured = measured_in(lifter, size)
    if measured is None or measured[1] != 0:
        return False
    return lifter.batch_of(measured[0]) == lifter.batch_of(x)


def is_channels_of(lifter: Lifter, size: object, x: fx.Node) -> bool:
    """Whether a size is the number of channels of ``x``, whatever the input."""
    known = lifter.known(x).channels
    if known is not None and number(lifter, size) == known:
        return True
    measured = measured_in(lifter, size)
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if measured is None or rank is None or axis is None:
        return False
    if measured[1] % rank != axis + rank:
        return False
    value = lifter.nodes[x]
    while value is not lifter.nodes[measured[0]]:
        if not (value.is_diagonal or isinstance(value, Alias)):
            return False
        value = value.inputs[0]
    return True


def features_read(lifter: Lifter, node: fx.Node) -> int | None:
    """How many features of its last dimension the layers read that follow a value."""
    declared = lifter.shape(node)
    if declared is not None and isinstance(declared[-1], int):
        return declared[-1]
    waiting, seen = list(node.users), 0
    while waiting and seen < _NEAR:
        reader, seen = waiting.pop(0), seen + 1
        if reader.op == "call_module":
            module = lifter.module(reader)
            for kind, name in ((nn.Linear, "in_features"), (nn.BatchNorm1d, "num_features")):
                if isinstance(module, kind):
                    return int(getattr(module, name))
            if isinstance(module, _KEEPS_SHAPE):
                waiting += reader.users
        elif reader.target is F.linear:
            _, weight = bind(reader, ("input", "weight"), (None, None))
            if lifter.constants.is_tensor(weight):
                return lifter.constants.shape(weight)[-1]
    return None


_KEEPS_SHAPE = (nn.Dropout, nn.Identity, nn.ReLU)

_ARITHMETIC = {operator.floordiv: operator.floordiv, operator.mul: operator.mul}


def measured_in(lifter: Lifter, size: object) -> tuple[fx.Node, int] | None:
    """The value and the dimension of it that a size was read from."""
    if not isinstance(size, fx.Node):
        return None
    if size.target == "size" and len(size.args) == 2:
        value, dim = size.args
    elif size.target is len:
        value, dim = size.args[0], 0
    elif size.target is operator.getitem:
        shape, dim = size.args
        shape, dim = _of_slice(shape, dim)
        if not isinstance(shape, fx.Node) or metadata_read(shape) != "shape" or shape.args[2:]:
            return None
        value = shape.args[0] if shape.args[1:] in {(), ("shape",)} else None
    else:
        return None
    known = isinstance(value, fx.Node) and value in lifter.nodes and isinstance(dim, int)
    return (value, dim) if known else None  # type: ignore[return-value]


def _of_slice(shape: Any, dim: Any) -> tuple[Any, Any]:
    """The sizes, and the place in them, of one of those that ``shape[2:]`` takes."""
    if not isinstance(shape, fx.Node) or shape.target is not operator.getitem:
        return shape, dim
    whole, part = shape.args
    if not isinstance(part, slice) or part.stop is not None or part.step not in {None, 1}:
        return shape, dim
    start: Any = part.start
    if type(start) is not int or type(dim) is not int or start < 0 or dim < 0:
        return shape, dim
    return whole, dim + start
