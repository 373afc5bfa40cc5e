"""Say of an operation that was not folded why it was not."""

from __future__ import annotations

from collections.abc import Hashable

from reparam.graph.ir import Kind, Node
from reparam.planner import NO_COMMON_SOURCE, Selection

__all__ = ["explain"]


def explain(  # noqa: PLR0911 (one return per kind of node reads best)
    node: Node, folded: set[Hashable], selection: Selection
) -> list[str]:
    """Reasons why a node that a reader would expect to be folded is still there; often none."""
    if node.virtual or node.twin_of is not None:
        return []
    if node.reason is not None:
        return [node.reason] if _meets_layers(node, selection) else []
    given_up = selection.reasons.get(node, [])
    if node.is_mixing or (node.key in folded and node.is_diagonal):
        # Two layers that follow each other and do not become one.
        return [reason for reason in given_up if not reason.startswith("its input, ")][:1]
    if node.key in folded:
        return []
    if node.kind is Kind.SUM:
        terms = [term for term in node.inputs if term.kind is Kind.AFFINE]
        return [r for r in given_up if r != NO_COMMON_SOURCE] if terms else []
    if node.is_diagonal and node.stored:
        return [_why_diagonal(node, given_up, selection)]
    return []


def _meets_layers(node: Node, selection: Selection) -> bool:
    """Whether a node stands beside something that could have folded with it."""
    if "norm" in node.what.lower() or "Conv" in node.what or "conv" in (node.reason or ""):
        return True
    beside = (*node.inputs, *selection.users.get(node, []))
    return any(n.kind in {Kind.AFFINE, Kind.SUM} for n in beside)


def _why_diagonal(node: Node, given_up: list[str], selection: Selection) -> str:
    behind = [
        reason
        for user in selection.users.get(node, [])
        for reason in selection.reasons.get(user, [])
        if not reason.startswith("its input, ")
    ]
    if given_up or behind:
        return (given_up or behind)[0]
    before = node.inputs[0]
    if before.kind is Kind.AFFINE:
        return "the layer before it cannot take it"
    readers = selection.users.get(node, [])
    followed = f"{readers[0].what} at {readers[0].where}" if readers else "nothing"
    return (
        f"it stands between {before.what} at {before.where} and {followed}; there is no "
        f"convolution or linear layer beside it to take it"
    )
