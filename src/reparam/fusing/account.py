"""The account of a plan: each norm, scale and branch of a model is in a region or refused, once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

from reparam.planner import Candidate, Selection
from reparam.program import Affine, Alias, Layout, Node, Opaque, ShapeOf, Sum
from reparam.reasons import Reason, Refusal, Why

_OF_ITS_INPUT = {Why.ALSO_READ, Why.IS_SEEN}
"""What is said better of the operation that makes the input."""

_BESIDE_LAYERS = {
    Why.CEIL_MODE, Why.UNCOUNTED_PADDING, Why.AUTO_PAD, Why.NEGATIVE_PADDING, Why.INEXACT,
    Why.DROPOUT_IN_TRAINING, Why.NOT_PER_CHANNEL, Why.STACKED,
}  # fmt: skip
"""What is worth saying only of an operation that stands beside something that folds."""

_NEAREST = 256
"""Earlier values to look for a common one among: bounds the work on very long programs."""


@dataclass(eq=False)
class Account:
    """What is left, each operation once, with the first reason that was found for it.

    Attributes:
        name_of: What makes two nodes one operation of the model: by default their key.

    """

    name_of: Callable[[Node], Hashable] = lambda node: node.key
    _left: dict[Hashable, Refusal] = field(default_factory=dict)

    def leave(self, where: str, what: str, reason: Reason, name: Hashable = None) -> None:
        """Note that something is left."""
        self._left.setdefault(name or (where, what), Refusal(where, what, reason))

    def leave_node(self, node: Node, reason: Reason) -> None:
        """Note that an operation is left."""
        self.leave(node.where, node.what, reason, self.name_of(node))

    def leave_region(self, region: Candidate, reason: Reason) -> None:
        """Note that a region is left: its norms, scales and branches, or else its last layer."""
        nodes = [n for n in sorted(region.nodes, key=lambda n: n.order) if n.is_scale]
        nodes += [n for n in region.nodes if isinstance(n, Sum)]
        for node in nodes or [region.output]:
            self.leave_node(node, reason)

    def explain(self, selection: Selection) -> None:
        """Note what the planner left in a program, and what the front end objected to."""
        for region, objection in selection.vetoed:
            self.leave_region(region, objection)
        chosen = {self.name_of(n) for region in selection.regions for n in region.gone}
        kept = {region.norm: region for region in selection.regions}
        affine_in: dict[Node, list[Node]] = {}
        for node in selection.program.nodes:
            affine_in[node] = _affine_in(node, affine_in)
            if node.is_virtual or self.name_of(node) in chosen:
                continue
            if node in kept:
                reason: Reason | None = _why_diagonal(
                    kept[node].source, kept[node].output, selection
                )
            elif isinstance(node, Sum):
                reason = _why_sum(node, affine_in[node], selection)
            else:
                reason = _why(node, selection)
            if reason is not None:
                self.leave_node(node, reason)

    def refusals(self, folded: Collection[Hashable]) -> tuple[Refusal, ...]:
        """What is refused, where these operations fold after all."""
        return tuple(refusal for name, refusal in self._left.items() if name not in folded)


def _why(node: Node, selection: Selection) -> Reason | None:
    """Why an operation that a reader would expect to be folded is still there, if it is one."""
    if isinstance(node, Opaque | Layout) and node.reason is not None:
        alone = node.reason.kind in _BESIDE_LAYERS and not _meets_layers(node, selection)
        return None if alone else node.reason
    if isinstance(node, Affine) and node.is_scale:
        return _why_diagonal(node.inputs[0], node, selection)
    own = [
        reason for reason in selection.reasons.get(node, [])
        if reason.kind not in {Why.NO_COMMON_SOURCE, *_OF_ITS_INPUT}
    ]  # fmt: skip
    # Two layers that follow each other and do not become one.
    return own[0] if node.is_convolution and own else None


def _affine_in(node: Node, known: dict[Node, list[Node]]) -> list[Node]:
    """The earlier values of which a value is an affine function, whoever else reads what between.

    The nearest comes first; a long program tells of its nearest values alone.
    """
    if isinstance(node, Sum):
        every = [[term, *known[term]] for term in node.inputs]
        return [value for value in every[0] if all(value in values for values in every[1:])]
    if isinstance(node, Affine | Alias):
        return [node.inputs[0], *known[node.inputs[0]]][:_NEAREST]
    return []


def _why_sum(node: Sum, sources: list[Node], selection: Selection) -> Reason | None:
    """Why parallel branches with numbers do not fold; None for a sum that is something else.

    A residual sum around an activation is one: its terms are not affine in one common value.
    """
    inside = _between(sources[0], node) if sources else []
    if not any(n.is_layer or n.is_scale for n in inside):
        return None
    for value in (node, *inside):
        for reason in selection.reasons.get(value, []):
            if reason.kind is not Why.NO_COMMON_SOURCE:
                return reason
    for value in inside:
        if value in selection.program.pinned:
            return Why.IS_SEEN(value=value.place)
        readers = [user for user in selection.users[value] if user not in (node, *inside)]
        if readers:
            return Why.ALSO_READ(value=value.place, readers=readers[0].place)
    return Why.NO_LAYER()


def _between(source: Node, node: Node) -> list[Node]:
    """Everything that a value is computed from, back to a source."""
    found: dict[Node, None] = {}
    waiting = [node]
    while waiting:
        fresh = [v for v in waiting.pop().inputs if v is not source and v not in found]
        found.update(dict.fromkeys(fresh))
        waiting += fresh
    return list(found)


def _meets_layers(node: Node, selection: Selection) -> bool:
    """Whether a node stands beside something that could have folded with it."""
    beside = (*node.inputs, *selection.users.get(node, []))
    return any(isinstance(n, Affine | Sum) for n in beside)


def _why_diagonal(source: Node, node: Node, selection: Selection) -> Reason:
    """Why no layer takes a scale and shift of a value that ends at a node."""
    given_up = selection.reasons.get(node, [])
    behind = [
        reason
        for user in selection.users.get(node, [])
        for reason in selection.reasons.get(user, [])
        if reason.kind not in _OF_ITS_INPUT
    ]
    # A residual sum behind it says nothing of the norm itself.
    known = [reason for reason in (*given_up, *behind) if reason.kind is not Why.NO_COMMON_SOURCE]
    if known or node.key in selection.kept:
        return known[0] if known else selection.kept[node.key]
    before, readers = _made_by(source), _read_by(node, selection)
    layers = [reader for reader in readers if reader.is_layer]
    others = [reader for reader in readers if reader not in layers]
    if isinstance(before, Affine):
        rivals = [reader for reader in _read_by(before, selection) if reader is not node]
        if rivals:
            return Why.INPUT_ALSO_READ(before=before.what, readers=_names(rivals))
        return Why.NOT_TAKEN(before=before.what)
    if layers and others:
        return Why.OUTPUT_ALSO_READ(layer=layers[0].what, readers=_names(others))
    return Why.NO_LAYER_BESIDE(before=before.what, readers=_names(readers) or "nothing")


def _made_by(value: Node) -> Node:
    """What made a value, past what passes values on."""
    while _passes(value):
        value = value.inputs[0]
    return value


def _read_by(node: Node, selection: Selection) -> list[Node]:
    """What reads the contents of a value, past what passes values on or was moved there."""
    readers: list[Node] = []
    for user in selection.users.get(node, []):
        if not isinstance(user, ShapeOf):
            passes = _passes(user) or user.is_copy
            readers += _read_by(user, selection) if passes else [user]
    return readers


def _passes(node: Node) -> bool:
    """Whether an operation hands a scale and shift of each channel on as it is."""
    return isinstance(node, Alias) or (isinstance(node, Layout) and node.reason is None)


def _names(nodes: list[Node]) -> str:
    return " and ".join(dict.fromkeys(node.what for node in nodes))
