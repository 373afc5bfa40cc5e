"""Rules for values that are joined along an axis of their own and added up over it."""

from __future__ import annotations

import torch
from torch import fx

from reparam.frontends.torch.arguments import bind, first
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.table import reads
from reparam.program import Node
from reparam.reasons import Why


@reads(torch.stack, any_arguments=True)
def stack(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.stack``: its values are joined along an axis of their own.

    Where nothing but sums and means over that axis read it, they read the values themselves.
    """
    parts, dim = bind(node, ("tensors", "dim"), (None, 0))
    alike = isinstance(parts, list | tuple) and all(lifter.is_value(p) for p in parts)
    if not alike or not isinstance(dim, int) or not node.users:
        return lifter.opaque(node, Why.STACKED())
    ranks = {lifter.known(part).rank for part in parts} - {None}
    rank = ranks.pop() if len(ranks) == 1 else None
    if not all(_adds_up(user, dim, rank) for user in node.users):
        return lifter.opaque(node, Why.STACKED())
    return lifter.stack(node, node, parts)


def _adds_up(user: fx.Node, dim: int, rank: int | None) -> bool:
    """Whether an operation is the sum or mean of a stack over the axis that was added."""
    if user.target not in {"sum", "mean", torch.sum, torch.mean} or set(user.kwargs) - {
        "dim", "axis", "keepdim", "keepdims", "input",
    }:  # fmt: skip
        return False
    _, over, keepdim = bind(user, ("input", "dim", "keepdim"), (None, None, False))
    over = over[0] if isinstance(over, list | tuple) and len(over) == 1 else over
    if not isinstance(over, int) or keepdim is not False or len(user.args) > 3:
        return False
    return over == dim or (rank is not None and over % (rank + 1) == dim % (rank + 1))


@reads(torch.sum, "sum")
def total(lifter: Lifter, node: fx.Node) -> Node | None:
    """``torch.stack(values).sum(0)``, and the mean: a sum of the values."""
    return lifter.sum_of_stack(node, first(node), mean=node.target in {"mean", torch.mean})
