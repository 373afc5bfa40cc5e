"""Say of an operation that was not folded why it was not."""

from __future__ import annotations

from collections.abc import Hashable

from reparam.graph.ir import Kind, Node
from reparam.planner import Selection
from reparam.reasons import Reason, Why

__all__ = ["explain"]

_OF_ITS_INPUT = {Why.ALSO_READ, Why.IS_SEEN}
"""What is said better of the operation that makes the input."""

_BESIDE_LAYERS = {
    Why.CEIL_MODE, Why.UNCOUNTED_PADDING, Why.AUTO_PAD, Why.NEGATIVE_PADDING, Why.INEXACT,
    Why.DROPOUT_IN_TRAINING,
}  # fmt: skip
"""What is worth saying only of an operation that stands beside something that folds."""


def explain(  # noqa: PLR0911 (one return per kind of node reads best)
    node: Node, folded: set[Hashable], selection: Selection
) -> list[Reason]:
    """Reasons why a node that a reader would expect to be folded is still there; often none."""
    if node.virtual or node.twin_of is not None:
        return []
    if node.reason is not None:
        alone = node.reason.kind in _BESIDE_LAYERS and not _meets_layers(node, selection)
        return [] if alone else [node.reason]
    given_up = selection.reasons.get(node, [])
    if node.is_mixing or (node.key in folded and node.is_diagonal):
        # Two layers that follow each other and do not become one.
        return [reason for reason in given_up if reason.kind not in _OF_ITS_INPUT][:1]
    if node.key in folded:
        return []
    if node.kind is Kind.SUM:
        terms = [term for term in node.inputs if term.kind is Kind.AFFINE]
        return [r for r in given_up if r.kind is not Why.NO_COMMON_SOURCE] if terms else []
    if node.is_diagonal and node.stored:
        return [_why_diagonal(node, given_up, selection)]
    return []


def _meets_layers(node: Node, selection: Selection) -> bool:
    """Whether a node stands beside something that could have folded with it."""
    beside = (*node.inputs, *selection.users.get(node, []))
    return any(n.kind in {Kind.AFFINE, Kind.SUM} for n in beside)


def _why_diagonal(node: Node, given_up: list[Reason], selection: Selection) -> Reason:
    behind = [
        reason
        for user in selection.users.get(node, [])
        for reason in selection.reasons.get(user, [])
        if reason.kind not in _OF_ITS_INPUT
    ]
    # A residual sum behind it says nothing of the norm itself.
    known = [reason for reason in (*given_up, *behind) if reason.kind is not Why.NO_COMMON_SOURCE]
    if known:
        return known[0]
    before, readers = _made_by(node), _read_by(node, selection)
    layers = [reader for reader in readers if reader.is_mixing and reader.stored]
    others = [reader for reader in readers if reader not in layers]
    if before.kind is Kind.AFFINE:
        rivals = [reader for reader in _read_by(before, selection) if reader is not node]
        if rivals:
            return Why.INPUT_ALSO_READ(before=before.what, readers=_names(rivals))
        return Why.NOT_TAKEN(before=before.what)
    if layers and others:
        return Why.OUTPUT_ALSO_READ(layer=layers[0].what, readers=_names(others))
    return Why.NO_LAYER_BESIDE(before=before.what, readers=_names(readers) or "nothing")


def _made_by(node: Node) -> Node:
    """What made the input of an operation, past what passes values on."""
    before = node.inputs[0]
    while before.kind is Kind.ALIAS:
        before = before.inputs[0]
    return before


def _read_by(node: Node, selection: Selection) -> list[Node]:
    """What reads the contents of a value, past what passes values on."""
    readers: list[Node] = []
    for user in selection.users.get(node, []):
        if not user.shape_only:
            readers += _read_by(user, selection) if user.kind is Kind.ALIAS else [user]
    return readers


def _names(nodes: list[Node]) -> str:
    return " and ".join(dict.fromkeys(node.what for node in nodes))
