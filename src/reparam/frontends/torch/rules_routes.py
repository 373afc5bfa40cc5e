"""Rules for operations that only move elements: whole channels, parts of them, or positions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from reparam.frontends.routes import Route, order_of, route
from reparam.frontends.torch.arguments import first
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.sizes import measured_in
from reparam.frontends.torch.table import FUNCTIONS, METHODS, reads
from reparam.program import Node

_FARTHEST = 4096
"""Places along an axis that are looked at; what is named further on is left."""


@reads(
    nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle,
    torch.channel_shuffle, torch.pixel_shuffle, torch.pixel_unshuffle, torch.flip, torch.fliplr,
    torch.flipud, torch.index_select, torch.narrow, torch.repeat_interleave, torch.roll,
    torch.rot90, torch.select, torch.squeeze, torch.tile, torch.unsqueeze,
    "expand", "flip", "fliplr", "flipud", "index_select", "narrow", "repeat", "repeat_interleave",
    "roll", "rot90", "select", "squeeze", "tile", "unfold", "unsqueeze",
)  # fmt: skip
def moved(lifter: Lifter, node: fx.Node) -> Node | None:
    """An operation whose result holds elements of its input and nothing else."""
    x = first(node)
    found = _route(lifter, node, x, lambda value: _run(lifter, node, x, value))
    return None if found is None else _made(lifter, node, x, found)


@reads(
    torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim, torch.moveaxis,
    "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis",
)  # fmt: skip
def permuted(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.permute`` and its kin with literal axes."""
    x = first(node)
    facts, axis = lifter.known(x), lifter.nodes[x].axis
    if facts.rank is None or (axis is None and not facts.digits):
        return None
    rank = facts.rank
    order = order_of(lambda value: _run(lifter, node, x, value), rank)
    if order is None:
        return None
    there = {at + rank: order.index(at + rank) - rank for at in range(-rank, 0)}
    return lifter.layout(
        node, x, None if axis is None else there[axis + rank], rank, batch=order[0] == 0,
        digits=tuple((there[at + rank], size) for at, size in facts.digits),
        single=frozenset(there[at + rank] for at in facts.single),
    )  # fmt: skip


@reads(
    torch.chunk, torch.split, torch.tensor_split, torch.unbind, torch.hsplit, torch.vsplit,
    "chunk", "split", "tensor_split", "unbind", "hsplit", "vsplit",
)  # fmt: skip
def taken_apart(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.chunk(n, dim)``: its parts are what is read, see :func:`item_of`."""
    known = all(_is_item(user) and _part(lifter, user) for user in node.users)
    return lifter.unknown(node, []) if known else None


def item_of(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.chunk(n, dim)[k]``, some of the channels or positions; ``x[..., ::2, None]``, too."""
    x = node.args[0]
    if not isinstance(x, fx.Node) or not lifter.is_value(x):
        return None
    if _is_apart(x):
        found = _part(lifter, node) if _is_item(node) else None
        return None if found is None else _made(lifter, node, first(x), found)
    return moved(lifter, node)


def _is_apart(node: fx.Node) -> bool:
    rule = METHODS.get(node.target) if isinstance(node.target, str) else FUNCTIONS.get(node.target)
    return rule is taken_apart


def _is_item(user: fx.Node) -> bool:
    return user.target is operator.getitem and isinstance(user.args[1], int)


def _part(lifter: Lifter, item: fx.Node) -> Route | None:
    """One of the values that an operation returns which takes another apart."""
    parts, k = item.args
    if not isinstance(parts, fx.Node) or not lifter.is_value(first(parts)):
        return None
    x, place = first(parts), cast("int", k)
    return _route(lifter, parts, x, lambda value: _run(lifter, parts, x, value)[place])


def _route(
    lifter: Lifter, node: fx.Node, x: fx.Node, run: Callable[[Tensor], Tensor]
) -> Route | None:
    """What an operation does with the channels of ``x``, if it keeps them apart."""
    facts, axis = lifter.known(x), lifter.nodes[x].axis
    if facts.rank is None or axis is None:
        return None
    single = facts.single | (frozenset(range(axis + 1, 0)) if facts.pooled else frozenset())
    # One channel looks like any axis of size one: two tell it from these. How many there are may
    # not be known: what leaves any number as they are does so.
    counts = (facts.channels,) if facts.channels not in {None, 1} else (2, facts.channels or 3)
    found = None
    for count in counts:
        assert count is not None  # noqa: S101 (None was replaced)
        found = route(run, facts.rank, axis, count, single, reach=_reach(lifter, node))
        if found is not None and found.is_in_place(count):
            if facts.channels is not None:
                return found._replace(origins=tuple((c,) for c in range(facts.channels)))
        elif facts.channels is None:
            return None
    return found


def _made(lifter: Lifter, node: fx.Node, x: fx.Node, found: Route) -> Node:
    facts = lifter.known(x)
    if found.is_in_place(facts.channels or len(found.origins)):
        pooled = found.axis < -1 and all(at in found.single for at in range(found.axis + 1, 0))
        return lifter.layout(
            node, x, found.axis, found.rank, pooled=pooled, batch=found.batch, single=found.single
        )
    made = lifter.routed(node, x, found.origins, found.axis, found.rank)
    lifter.facts_of(made).single = found.single
    if not found.batch:
        lifter.facts_of(made).batch = None
    return made


def _run(lifter: Lifter, node: fx.Node, x: fx.Node, value: Tensor) -> Any:
    """Run an operation on another value than ``x``, whose sizes its arguments may be."""

    def read(argument: fx.Node) -> Any:
        if argument is x:
            return value
        if lifter.constants.is_tensor(argument):
            known = lifter.trace.values.get(argument)
            numbers = lifter.constants.value(argument)
            return numbers.to(known.dtype) if isinstance(known, Tensor) else numbers
        of = measured_in(lifter, argument)
        if of is None or of[0] is not x:
            msg = f"{argument} is not known"
            raise ValueError(msg)
        return value.shape[of[1]]

    args, kwargs = fx.map_arg((node.args, node.kwargs), read)
    if node.op == "call_module":
        return lifter.module(node)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _reach(lifter: Lifter, node: fx.Node) -> int:
    """The largest place along an axis that the arguments name."""
    numbers = [0]

    def note(value: Any) -> Any:
        parts = (value.start, value.stop) if isinstance(value, slice) else (value,)
        numbers.extend(abs(n) for n in parts if type(n) is int and abs(n) < _FARTHEST)
        return value

    fx.node.map_aggregate((node.args, node.kwargs), note)
    if node.op == "call_module":
        note(getattr(lifter.module(node), "downscale_factor", 0))
    return max(numbers)
