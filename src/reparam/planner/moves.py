"""Move per-channel operations to where a convolution can take them.

A scale behind ``permute``, ``flatten`` or a mean acts on the same channels before it, and the other
way round; one behind ``cat`` acts on each part; one that several layers read can be handed to each
of them. A moved operation keeps its key: where its region is folded, it becomes the identity where
it stands.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TypeGuard

from reparam.algebra import AffineConv, Geometry, Leaf, Rows, channels, compose
from reparam.errors import InexactError
from reparam.graph.ir import Affine, Alias, Concat, Layout, Moved, Node, Program, ShapeOf, Sum

__all__ = ["Direction", "Move", "moved"]


class Direction(enum.Enum):
    """Which way an operation moves."""

    BACKWARD = "backward"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """One operation and the copies that took its place.

    Attributes:
        node: The operation; it passes its input on now.
        direction: Where it went.
        copies: What does its work elsewhere; it is the identity only if all of them fold.

    """

    node: Node
    direction: Direction
    copies: tuple[Node, ...]


def moved(
    program: Program, excluded: set[tuple[Hashable, Direction]]
) -> tuple[Program, list[Move]]:
    """Move what can be moved, backward before forward, in a new program.

    Args:
        program: Where the operations stand; it stays as it is.
        excluded: Keys of operations that are not to be moved in a direction.

    """
    mover = _Mover(program)
    moves = []
    # A depthwise 1x1 convolution needs the spatial axes that it stands on; it stays.
    diagonal = [n for n in program.nodes if _is_free(n)]
    # The last goes forward first, so that those before it find the way free.
    waiting = deque([(n, Direction.BACKWARD) for n in diagonal])
    waiting += [(n, Direction.FORWARD) for n in reversed(diagonal)]
    while waiting:
        node, direction = waiting.popleft()
        if (node.key, direction) not in excluded and not mover.has_left(node):
            copies = mover.move(node, direction)
            if copies:
                moves.append(Move(node, direction, copies))
                # What has gone one way does not come back.
                waiting.extend((copy, direction) for copy in copies)
    if not moves:
        return program, moves
    made, now = mover.program()
    return made, [Move(now[m.node], m.direction, tuple(now[c] for c in m.copies)) for m in moves]


def _is_free(node: Node) -> TypeGuard[Affine]:
    return isinstance(node, Affine) and node.is_diagonal and not node.leaf.geometry.dims


class _Mover:
    """A program whose wires change: what each node reads, and what only passes its input on."""

    def __init__(self, program: Program) -> None:
        self._nodes = list(program.nodes)
        self._pinned = program.pinned
        self._inputs = {node: node.inputs for node in program.nodes}
        self._users = program.users()
        self._left: set[Affine] = set()

    def has_left(self, node: Node) -> bool:
        """Whether an operation was moved from where this node stands."""
        return node in self._left

    def move(self, node: Affine, direction: Direction) -> tuple[Affine, ...]:
        """Move an operation one step; none are its copies where it cannot go."""
        if direction is Direction.FORWARD:
            places = self._into_readers(node)
        else:
            places = self._before_layout(node) or self._into_parts(node)
        return self._install(node, places)

    def program(self) -> tuple[Program, dict[Node, Node]]:
        """Write the nodes anew as they are wired now, and say which became which."""
        now: dict[Node, Node] = {}
        for node in self._nodes:
            inputs = tuple(now[v] for v in self._inputs[node])
            if isinstance(node, Affine) and node in self._left:
                now[node] = Alias(
                    inputs=inputs, key=node.key, order=node.order, what=node.what,
                    where=node.where, axis=node.axis, origin=node.origin, moved=node.moved,
                )  # fmt: skip
            else:
                now[node] = node if inputs == node.inputs else replace(node, inputs=inputs)
        return Program(tuple(now.values()), frozenset(now[n] for n in self._pinned)), now

    def _before_layout(self, node: Affine) -> list[_Place]:
        """Move an operation before the permutations and flattenings that it follows."""
        chain = self._passing(self._inputs[node][0], Layout)
        if not any(isinstance(n, Layout) for n in chain) or node.axis != chain[0].axis:
            return []
        first = chain[-1]
        before = self._inputs[first][0]
        if not self._is_made(before) or before.axis is None or not self._is_read_once(before):
            return []
        return [(first, before, _copy(node, before, before.axis))]

    def _into_parts(self, node: Affine) -> list[_Place]:
        """Split an operation behind ``cat`` into one for each part."""
        chain = self._passing(self._inputs[node][0], Concat)
        joined = chain[-1] if chain else None
        if not isinstance(joined, Concat) or node.axis != joined.axis:
            return []
        places: list[_Place] = []
        start, total = 0, node.leaf.geometry.out_channels
        part = (node.moved and node.moved.part) or (0, total, total)
        values = self._inputs[joined]
        for value in values:
            size = self._channels_of(value)
            if size is None or not self._is_read_once(value) or values.count(value) > 1:
                return []
            if not self._is_made(value):
                return []
            copy = _copy(
                node, value, value.axis, part=(part[0] + start, part[0] + start + size, part[2]),
                leaf=_slice(node.leaf, start, start + size), stored=node.stored * size // total,
            )  # fmt: skip
            places.append((joined, value, copy))
            start += size
        return places if start == total else []

    def _into_readers(self, node: Affine) -> list[_Place]:
        """Hand an operation to the layers that read it, behind what stands in between.

        That can be a permutation, a flattening or an average, and several layers may read it.
        """
        readers = self._content_readers(node)
        before = self._inputs[node][0]
        if self._is_read_once(before) and before.is_layer:
            return []  # the layer before can take it whole
        if len(readers) == 1 and not self._commutes(readers[0], node):
            return []  # it can go no further than it is
        if node in self._pinned or not all(self._leads_on(r, node) for r in readers):
            return []
        places: list[_Place] = []
        for reader in readers:
            share = node.stored // len(readers)
            if self._commutes(reader, node):
                copy = _copy(node, reader, reader.axis, stored=share)
                places += [(r, reader, copy) for r in self._content_readers(reader)]
            else:
                places.append((reader, node, _copy(node, node, node.axis, stored=share)))
        return places

    def _leads_on(self, reader: Node, node: Affine) -> bool:
        """Whether an operation before ``reader`` can go into layers there or further on."""
        if reader.is_layer:
            return _takes(reader, node)
        passes = self._is_scaling(reader) or self._commutes(reader, node)
        if not passes or reader.axis is None or reader in self._pinned:
            return False
        onward = self._content_readers(reader)
        # A layer takes it on the axis that it has there.
        there = _copy(node, reader, reader.axis)
        return bool(onward) and all(self._leads_on(r, there) for r in onward)

    def _is_scaling(self, node: Node) -> bool:
        return node.is_diagonal and node not in self._left

    def _is_alias(self, node: Node) -> bool:
        return isinstance(node, Alias) or node in self._left

    def _is_made(self, value: Node) -> bool:
        """Whether something may be put behind what makes a value."""
        return isinstance(value, Affine | Sum | Concat) and value not in self._left

    def _content_readers(self, value: Node) -> list[Node]:
        return [user for user in self._users[value] if not isinstance(user, ShapeOf)]

    def _is_read_once(self, value: Node) -> bool:
        return value not in self._pinned and len(self._content_readers(value)) == 1

    def _passing(self, value: Node, kind: type[Layout | Concat]) -> list[Node]:
        """The nodes of a kind, and aliases, from ``value`` upwards that nothing else reads."""
        chain: list[Node] = []
        while (isinstance(value, kind) or self._is_alias(value)) and self._is_read_once(value):
            chain.append(value)
            if isinstance(value, Concat):
                break
            value = self._inputs[value][0]
        return chain

    def _commutes(self, reader: Node, node: Node) -> bool:
        """Whether a per-channel operation may as well stand behind one that reads it.

        Besides what moves elements or passes them on, that is true of every average of a channel's
        elements: the sum of its weights is one, and no padding is among them.
        """
        if isinstance(reader, Layout) or self._is_alias(reader):
            return True
        if not isinstance(reader, Affine) or reader.stored or not reader.is_mixing:
            return False
        geometry = reader.leaf.geometry
        return reader.axis == node.axis and all(
            taps[0] >= 0 and taps[-1] + extent < 0
            for taps, extent in zip(geometry.offsets, geometry.extent, strict=True)
        )

    def _channels_of(self, value: Node) -> int | None:
        while not isinstance(value, Affine) or value in self._left:
            if isinstance(value, Sum):
                sizes = {self._channels_of(term) for term in self._inputs[value]} - {None}
                return sizes.pop() if len(sizes) == 1 else None
            if isinstance(value, Concat):
                parts = [self._channels_of(v) for v in self._inputs[value]]
                return None if None in parts else sum(p for p in parts if p is not None)
            if not self._is_alias(value):
                return None
            value = self._inputs[value][0]
        return value.leaf.geometry.out_channels

    def _install(self, node: Affine, places: list[_Place]) -> tuple[Affine, ...]:
        """Put copies between readers and what they read; the original passes its input on."""
        copies = tuple(dict.fromkeys(copy for _, _, copy in places))
        for reader, value, copy in places:
            self._inputs[reader] = tuple(copy if v is value else v for v in self._inputs[reader])
            self._users[value].remove(reader)
            self._users.setdefault(copy, []).append(reader)
        for copy in copies:
            source = copy.inputs[0]
            self._inputs[copy] = copy.inputs
            self._users[source].append(copy)
            self._nodes.insert(self._nodes.index(source) + 1, copy)
        if copies:
            self._left.add(node)
        return copies


_Place = tuple[Node, Node, Affine]
"""A reader, the value that it reads, and what comes between."""


def _takes(reader: Node, node: Affine) -> bool:
    """Whether a layer can take an operation on its input exactly."""
    if not isinstance(reader, Affine) or reader.axis != node.axis:
        return False
    geometry = reader.leaf.geometry
    try:
        compose(geometry, node.leaf.geometry.in_dims(geometry.dims))
    except InexactError:
        return False
    return True


def _copy(
    node: Affine, source: Node, axis: int | None, *, part: tuple[int, int, int] | None = None,
    leaf: Leaf | None = None, stored: int | None = None,
) -> Affine:  # fmt: skip
    """An operation once more, on another value."""
    whence = node.moved or Moved(node.axis)
    return replace(
        node, inputs=(source,), axis=axis, leaf=leaf or node.leaf,
        stored=node.stored if stored is None else stored,
        moved=replace(whence, part=part or whence.part),
    )  # fmt: skip


def _slice(leaf: Leaf, start: int, stop: int) -> Leaf:
    size = stop - start
    geometry = Geometry.pointwise(size, size, dims=0, groups=size, bias=leaf.geometry.bias)

    def load(rows: Rows | None) -> AffineConv:
        op = channels(leaf.load(None), (start, stop))
        return op if rows is None else op.rows(*rows)

    return Leaf(geometry, load)
