"""Make the planner's nodes: what lifting is in every front end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from reparam import algebra
from reparam.algebra import AffineConv, Leaf
from reparam.program import (
    Affine,
    Alias,
    Concat,
    HostedInput,
    Layout,
    Node,
    Opaque,
    Padded,
    Routed,
    Sum,
)
from reparam.reasons import Reason, Why

Pads = tuple[tuple[int, int], ...]

Operation = TypeVar("Operation")
Value = TypeVar("Value")


@dataclass(slots=True)
class Facts:
    """What is known of a value without running the program.

    Attributes:
        rank: Number of its dimensions, or None.
        channels: Size of its channel axis, or None.
        pooled: Whether all of its axes behind that of the channels have the size one.
        batch: The value whose first dimension has the size of its own first one, if another.
        digits: Where its channels are divided among several axes: these, from the end, and their
            sizes, the one that counts most first.
        single: Axes that were made of nothing, of size one, from the end.

    """

    rank: int | None = None
    channels: int | None = None
    pooled: bool = False
    batch: Node | None = None
    digits: tuple[tuple[int, int], ...] = ()
    single: frozenset[int] = frozenset()


class Builder(Generic[Operation, Value]):
    """Makes a node of every operation of a program, for values that a front end names its own way.

    A front end says how an operation is named (:meth:`named`, :meth:`describe`); its rules for the
    single operations call the rest.
    """

    def __init__(self) -> None:
        self.nodes: dict[Value, Node] = {}
        self.made: list[Node] = []
        self.pinned: set[Node] = set()
        self._facts: dict[Node, Facts] = {}
        self._hosted: dict[Hashable, Node] = {}
        self.stacks: dict[Value, list[Node]] = {}
        self._padded: dict[tuple[Node, Pads, str], Node] = {}

    def named(self, operation: Operation) -> dict[str, Any]:
        """The key, order, place and origin of the nodes of an operation."""
        raise NotImplementedError

    def describe(self, operation: Operation) -> str:
        """Name an operation as a person would."""
        raise NotImplementedError

    def facts_of(self, node: Node) -> Facts:
        """What is known of a value."""
        return self._facts[node]

    def batch_of(self, value: Value) -> Node:
        """The value that another has the size of its first dimension from; often itself."""
        node = self.nodes[value]
        return self.facts_of(node).batch or node

    def is_value(self, value: object) -> bool:
        """Whether an argument is a tensor that depends on the input."""
        return value in self.nodes

    def node(
        self, kind: Callable[..., Node], operation: Operation, inputs: Sequence[Node],
        what: str | None = None, facts: Facts | None = None, **own: Any,
    ) -> Node:  # fmt: skip
        """Make a node of any kind."""
        what = self.describe(operation) if what is None else what
        names = self.named(operation) | {"channels": None if facts is None else facts.channels}
        return self.enter(kind(inputs=tuple(inputs), what=what, **names, **own), facts)

    def enter(self, made: Node, facts: Facts | None = None) -> Node:
        """Take a node into the program."""
        self.made.append(made)
        self._facts[made] = facts or Facts()
        return made

    def affine(  # noqa: PLR0913 (what a rule knows of an operator)
        self, operation: Operation, source: Value, leaf: Leaf, what: str, *, axis: int | None,
        stored: int, rank: int | None = None, reads: Collection[Any] = (), computed: int = 0,
        padded: Node | None = None, is_norm: bool = False,
    ) -> Node:  # fmt: skip
        """Make a node that applies an operator to one value."""
        before = self.nodes[source]
        facts = Facts(
            rank or self.facts_of(before).rank, leaf.geometry.out_channels,
            batch=self.batch_of(source),
        )  # fmt: skip
        return self.node(
            Affine, operation, (padded or before,), what, facts, axis=axis, leaf=leaf,
            stored=stored, computed=computed, reads=tuple(reads), is_norm=is_norm,
        )  # fmt: skip

    def diagonal(  # noqa: PLR0913 (what a rule knows of an operator)
        self, operation: Operation, source: Value, make: Callable[[], AffineConv], what: str, *,
        axis: int, stored: int, reads: Collection[Any], rank: int | None = None,
        is_norm: bool = False,
    ) -> Node:  # fmt: skip
        """Make a node that scales and shifts each channel, where all of its numbers are finite.

        Raises:
            InexactError: The numbers make no operator, as a variance that gives no scale.

        """
        op = make()
        if not all(t is None or bool(torch.isfinite(t).all()) for t in (op.kernel, op.bias)):
            return self.opaque(operation, Why.NOT_FINITE(what=what))
        leaf = Leaf.of(op.geometry, make)
        return self.affine(
            operation, source, leaf, what, axis=axis, stored=stored, reads=reads, rank=rank,
            is_norm=is_norm,
        )  # fmt: skip

    def average(
        self, operation: Operation, source: Value, channels: int, sizes: Sequence[int],
        strides: Sequence[int], pads: Sequence[Any], dilations: Sequence[int] | None = None,
    ) -> Node:  # fmt: skip
        """Make a node of an average pooling that divides by the size of its window everywhere."""
        dims, arguments = len(sizes), (channels, sizes, strides, pads, dilations or 1)
        leaf = Leaf.of(
            algebra.average_pool_geometry(*arguments), lambda: algebra.average_pool(*arguments)
        )
        what = "average pool"
        return self.affine(operation, source, leaf, what, axis=-dims - 1, stored=0, rank=dims + 2)

    def zero_pad(self, operation: Operation, source: Value, channels: int, pads: Pads) -> Node:
        """Make a node of zero padding of the spatial axes; negative numbers crop."""
        dims = len(pads)
        what = "zero padding" if any(n > 0 for pair in pads for n in pair) else "crop"
        leaf = algebra.pad_leaf(channels, pads)
        return self.affine(operation, source, leaf, what, axis=-dims - 1, stored=0, rank=dims + 2)

    def hosted(  # noqa: PLR0913 (what a rule knows of a layer)
        self, operation: Operation, sources: Sequence[Node], leaf: Leaf, what: str,
        reads: Collection[Any], *, computed: int = 0, like: Hashable = None,
        spread: tuple[int, ...] | None = None,
        window: tuple[Hashable, tuple[tuple[int, ...], ...]] | None = None,
    ) -> Node:  # fmt: skip
        """Make two nodes: what a layer reads from its input, and the layer as an operator on it.

        Layers that read the same from one value, as ``like`` says, can be branches of each other.
        For ``spread`` and ``window`` see :class:`~reparam.program.HostedInput`.
        """
        read = None if like is None else self._hosted.get((*sources, like))
        if read is None:
            axis = None if spread is None else -leaf.geometry.dims - 1
            read = self.node(
                HostedInput, operation, sources, f"the input of {what}", axis=axis, spread=spread,
                window=window,
            )  # fmt: skip
            self._hosted[*sources, like] = read
        dims, channels = leaf.geometry.dims, leaf.geometry.out_channels
        return self.node(
            Affine, operation, (read,), what, Facts(dims + 2, channels), axis=-dims - 1, leaf=leaf,
            stored=leaf.geometry.parameters, computed=computed, reads=tuple(reads),
        )  # fmt: skip

    def padded(
        self, operation: Operation, source: Value, pads: Pads, mode: str, *, axis: int | None,
        of_layer: bool,
    ) -> Node:  # fmt: skip
        """Make, or find, a value that is another with padding other than zeros.

        What pads one value in the same way makes one and the same padded value, so that what reads
        it can be branches of each other.
        """
        key = self.nodes[source], pads, mode
        if key not in self._padded:
            known = self.facts_of(key[0])
            facts = replace(known, batch=known.batch or key[0])
            self._padded[key] = self.node(
                Padded, operation, key[:1], f"{mode} padding", facts, axis=axis, pads=pads,
                mode=mode, of_layer=of_layer,
            )  # fmt: skip
        return self._padded[key]

    def sum(self, operation: Operation, terms: list[Value], coefficients: list[float]) -> Node:
        """Make a node that adds values."""
        return self.sum_of(operation, [self.nodes[term] for term in terms], coefficients)

    def sum_of(
        self, operation: Operation, before: Sequence[Node], coefficients: list[float]
    ) -> Node:
        """Make a node that adds what other nodes return."""
        known = [self.facts_of(value) for value in before]
        facts = Facts(
            max((f.rank for f in known if f.rank is not None), default=None),
            max((f.channels for f in known if f.channels is not None), default=None),
        )
        batches = {fact.batch or value for fact, value in zip(known, before, strict=True)}
        facts.batch = batches.pop() if len(batches) == 1 else None
        axis = next((value.axis for value in before if value.axis is not None), None)
        return self.node(
            Sum, operation, before, "add", facts, axis=axis, coefficients=tuple(coefficients)
        )

    def stack(self, operation: Operation, value: Value, parts: Sequence[Value]) -> Node:
        """Make nodes of what joins values along an axis of its own, of which only sums are read."""
        made = [self.alias(operation, part, "stack") for part in parts]
        self.stacks[value] = made
        return made[0]

    def sum_of_stack(self, operation: Operation, value: Value, *, mean: bool) -> Node | None:
        """Make a node that adds what was joined along an axis of its own, if a value is that."""
        parts = self.stacks.get(value)
        if parts is None:
            return None
        factor = 1 / len(parts) if mean else 1.0
        return self.sum_of(operation, parts, [factor] * len(parts))

    def alias(self, operation: Operation, source: Value, what: str | None = None) -> Node:
        """Make a node that returns its input."""
        before = self.nodes[source]
        facts = replace(self.facts_of(before), batch=self.batch_of(source))
        return self.node(Alias, operation, (before,), what, facts, axis=before.axis)

    def layout(  # noqa: PLR0913 (what is known of it)
        self, operation: Operation, source: Value, axis: int | None, rank: int | None = None, *,
        pooled: bool = False, monotone: bool = False, batch: bool = False,
        digits: tuple[tuple[int, int], ...] = (), single: frozenset[int] = frozenset(),
        reason: Reason | None = None,
    ) -> Node:  # fmt: skip
        """Make a node that moves or averages the elements of each channel by itself.

        Its channel axis is ``axis``, counted from the end; ``batch`` says that its first dimension
        is as long as that of ``source``.
        """
        before = self.nodes[source]
        first = self.batch_of(source) if batch else None
        facts = Facts(rank, self.facts_of(before).channels, pooled, first, digits, single)
        return self.node(
            Layout, operation, (before,), None, facts, axis=axis, monotone=monotone, reason=reason
        )

    def routed(
        self, operation: Operation, source: Value, origins: Iterable[Sequence[int]],
        axis: int | None, rank: int | None = None,
    ) -> Node:  # fmt: skip
        """Make a node that moves elements between channels; see :class:`~reparam.program.Routed`.

        ``origins`` are, for each channel that it returns, those that its elements come from.
        """
        taken = tuple(map(tuple, origins))
        facts = Facts(rank, len(taken), batch=self.batch_of(source))
        before = (self.nodes[source],)
        return self.node(Routed, operation, before, None, facts, axis=axis, origins=taken)

    def concat(self, operation: Operation, parts: Sequence[Value], axis: int) -> Node:
        """Make a node that joins values along their channel axis."""
        before = [self.nodes[part] for part in parts]
        sizes = [self.facts_of(value).channels for value in before]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        ranks = (self.facts_of(value).rank for value in before)
        facts = Facts(next((r for r in ranks if r is not None), None), total)
        facts.batch = self.batch_of(parts[0])
        return self.node(Concat, operation, before, None, facts, axis=axis)

    def opaque(
        self, operation: Operation, reason: Reason | None = None, *, keeps: bool = False
    ) -> Node:
        """Make a node that the planner does not look into; see :meth:`unknown`."""
        raise NotImplementedError

    def unknown(
        self, operation: Operation, sources: Sequence[Node], reason: Reason | None = None, *,
        keeps: bool = False, axis: int | None = None,
    ) -> Node:  # fmt: skip
        """Make a node that the planner does not look into.

        ``keeps`` says that it works on every element by itself, so that the axes stay in place.
        """
        facts = None
        if keeps and sources:
            known = self.facts_of(sources[0])
            facts = replace(known, batch=known.batch or sources[0])
            axis = axis if sources[0].axis is None else sources[0].axis
        return self.node(Opaque, operation, sources, None, facts, axis=axis, reason=reason)


def joined_channels(digits: Sequence[tuple[int, int]], rank: int) -> list[tuple[int]] | None:
    """The channels of an axis that the second and third one become, which held them together.

    Args:
        digits: Where the channels are; see :class:`Facts`.
        rank: Number of dimensions.

    Returns:
        For each channel that it was, alone in a tuple; None where others than these two axes hold
        them.

    """
    weights, weight = {}, 1
    for at, size in reversed(digits):
        weights[at + rank] = (weight, size)
        weight *= size
    if set(weights) != {1, 2}:
        return None
    (outer, outer_size), (inner, inner_size) = weights[1], weights[2]
    return [(i * outer + k * inner,) for i in range(outer_size) for k in range(inner_size)]
