"""Move per-channel operations to where a convolution can take them.

A scale behind ``permute``, ``flatten`` or a mean acts on the same channels before it, and the other
way round; one behind ``cat`` acts on each part; one that several layers read can be handed to each
of them. A moved operation keeps its key: where its region is folded, it becomes the identity where
it stands.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from reparam.algebra import AffineConv, Geometry, Leaf, Rows, channels, compose
from reparam.errors import InexactError
from reparam.graph.ir import Kind, Node, Program

__all__ = ["Direction", "Move", "plan_moves"]


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
        undo: Puts everything back.

    """

    node: Node
    direction: Direction
    copies: tuple[Node, ...]
    undo: Callable[[], None]


def plan_moves(program: Program, excluded: set[tuple[Hashable, Direction]]) -> list[Move]:
    """Move what can be moved, backward before forward.

    Args:
        program: It is changed; the moves can undo that.
        excluded: Keys of operations that are not to be moved in a direction.

    """
    mover = _Mover(program)
    moves = []
    # A depthwise 1x1 convolution needs the spatial axes that it stands on; it stays.
    diagonal = [n for n in program.nodes if n.is_diagonal and n.leaf and not n.leaf.geometry.dims]
    # The last goes forward first, so that those before it find the way free.
    waiting = deque([(n, Direction.BACKWARD) for n in diagonal])
    waiting += [(n, Direction.FORWARD) for n in reversed(diagonal)]
    while waiting:
        node, direction = waiting.popleft()
        if node.is_diagonal and (node.key, direction) not in excluded:
            move = mover.move(node, direction)
            if move is not None:
                moves.append(move)
                # What has gone one way does not come back.
                waiting.extend((copy, direction) for copy in move.copies)
    return moves


class _Mover:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._users = program.users()

    def move(self, node: Node, direction: Direction) -> Move | None:
        """Move an operation one step."""
        if direction is Direction.FORWARD:
            return self.into_readers(node)
        return self.before_layout(node) or self.into_parts(node)

    def before_layout(self, node: Node) -> Move | None:
        """Move an operation before the permutations and flattenings that it follows."""
        chain = self._passing(node.inputs[0], {Kind.LAYOUT, Kind.ALIAS})
        if not any(n.kind is Kind.LAYOUT for n in chain) or node.axis != chain[0].axis:
            return None
        first = chain[-1]
        before = first.inputs[0]
        if before.kind not in {Kind.AFFINE, Kind.SUM, Kind.CONCAT} or before.axis is None:
            return None
        if not self._is_read_once(before):
            return None
        places = [(first, before, _copy(node, before, before.axis))]
        return self._install(node, Direction.BACKWARD, places)

    def into_parts(self, node: Node) -> Move | None:
        """Split an operation behind ``cat`` into one for each part."""
        chain = self._passing(node.inputs[0], {Kind.CONCAT, Kind.ALIAS})
        if not chain or chain[-1].kind is not Kind.CONCAT or node.leaf is None:
            return None
        joined = chain[-1]
        if node.axis != joined.axis:
            return None
        places = []
        start, total = 0, node.leaf.geometry.out_channels
        for value in joined.inputs:
            size = _channels_of(value)
            if size is None or not self._is_read_once(value) or joined.inputs.count(value) > 1:
                return None
            if value.kind not in {Kind.AFFINE, Kind.SUM, Kind.CONCAT}:
                return None
            copy = _copy(node, value, value.axis)
            copy.leaf = _slice(node.leaf, start, start + size)
            first = node.part[0] if node.part else 0
            copy.part = (first + start, first + start + size, node.part[2] if node.part else total)
            copy.stored = node.stored * size // total
            places.append((joined, value, copy))
            start += size
        return self._install(node, Direction.BACKWARD, places) if start == total else None

    def into_readers(self, node: Node) -> Move | None:
        """Hand an operation to the layers that read it, behind what stands in between.

        That can be a permutation, a flattening or an average, and several layers may read it.
        """
        readers = self._content_readers(node)
        before = node.inputs[0]
        if self._is_read_once(before) and before.is_mixing and before.stored:
            return None  # the layer before can take it whole
        if len(readers) == 1 and not _commutes(readers[0], node):
            return None  # it can go no further than it is
        if node in self._program.pinned or not all(self._leads_on(r, node) for r in readers):
            return None
        places = []
        for reader in readers:
            if _commutes(reader, node):
                copy = _copy(node, reader, reader.axis)
                places += [(r, reader, copy) for r in self._content_readers(reader)]
            else:
                places.append((reader, node, _copy(node, node, node.axis)))
        for copy in {id(c): c for _, _, c in places}.values():
            copy.stored = node.stored // len(readers)
        return self._install(node, Direction.FORWARD, places) if places else None

    def _leads_on(self, reader: Node, node: Node) -> bool:
        """Whether an operation before ``reader`` can go into layers there or further on."""
        if reader.is_mixing and reader.stored:
            return _takes(reader, node)
        passes = reader.is_diagonal or _commutes(reader, node)
        if not passes or reader.axis is None or reader in self._program.pinned:
            return False
        onward = self._content_readers(reader)
        # A layer takes it on the axis that it has there.
        there = _copy(node, reader, reader.axis)
        return bool(onward) and all(self._leads_on(r, there) for r in onward)

    def _content_readers(self, value: Node) -> list[Node]:
        return [user for user in self._users[value] if not user.shape_only]

    def _is_read_once(self, value: Node) -> bool:
        return value not in self._program.pinned and len(self._content_readers(value)) == 1

    def _passing(self, value: Node, kinds: set[Kind]) -> list[Node]:
        """The nodes of these kinds from ``value`` upwards that nothing else reads."""
        chain: list[Node] = []
        while value.kind in kinds and self._is_read_once(value):
            chain.append(value)
            if value.kind is Kind.CONCAT:
                break
            value = value.inputs[0]
        return chain

    def _install(
        self, node: Node, direction: Direction, places: list[tuple[Node, Node, Node]]
    ) -> Move:
        """Put copies between readers and what they read; the original passes its input on."""
        program = self._program
        copies = tuple({id(copy): copy for _, _, copy in places}.values())
        inputs = {reader: reader.inputs for reader, _, _ in places}
        for reader, value, copy in places:
            reader.inputs = tuple(copy if v is value else v for v in reader.inputs)
        for copy in copies:
            program.nodes.insert(program.nodes.index(copy.inputs[0]) + 1, copy)
        leaf = node.leaf
        node.kind, node.leaf = Kind.ALIAS, None
        self._users = program.users()

        def undo() -> None:
            node.kind, node.leaf = Kind.AFFINE, leaf
            for reader, before in inputs.items():
                reader.inputs = before
            program.nodes[:] = [n for n in program.nodes if n not in copies]

        return Move(node, direction, copies, undo)


def _commutes(reader: Node, node: Node) -> bool:
    """Whether a per-channel operation may as well stand behind one that reads it.

    Besides what moves elements or passes them on, that is true of every average of a channel's
    elements: the sum of its weights is one, and no padding is among them.
    """
    if reader.kind in {Kind.LAYOUT, Kind.ALIAS}:
        return True
    if reader.leaf is None or reader.stored or not reader.is_mixing or reader.axis != node.axis:
        return False
    geometry = reader.leaf.geometry
    return all(
        taps[0] >= 0 and taps[-1] + extent < 0
        for taps, extent in zip(geometry.offsets, geometry.extent, strict=True)
    )


def _takes(reader: Node, node: Node) -> bool:
    """Whether a layer can take an operation on its input exactly."""
    if reader.leaf is None or node.leaf is None or reader.axis != node.axis:
        return False
    geometry = reader.leaf.geometry
    try:
        compose(geometry, node.leaf.geometry.in_dims(geometry.dims))
    except InexactError:
        return False
    return True


def _channels_of(value: Node) -> int | None:
    while value.leaf is None:
        if value.kind is Kind.SUM:
            sizes = {_channels_of(term) for term in value.inputs} - {None}
            return sizes.pop() if len(sizes) == 1 else None
        if value.kind is Kind.CONCAT:
            parts = [_channels_of(v) for v in value.inputs]
            return None if None in parts else sum(p for p in parts if p is not None)
        if value.kind is not Kind.ALIAS:
            return None
        value = value.inputs[0]
    return value.leaf.geometry.out_channels


def _copy(node: Node, source: Node, axis: int | None) -> Node:
    return Node(
        Kind.AFFINE, (source,), node.key, node.order, node.what, node.where, leaf=node.leaf,
        axis=axis, stored=node.stored, own_axis=node.own_axis or node.axis, part=node.part,
        twin_of=node.twin_of or node,
    )  # fmt: skip


def _slice(leaf: Leaf, start: int, stop: int) -> Leaf:
    size = stop - start
    geometry = Geometry.pointwise(size, size, dims=0, groups=size, bias=leaf.geometry.bias)

    def load(rows: Rows | None) -> AffineConv:
        op = channels(leaf.load(None), (start, stop))
        return op if rows is None else op.rows(*rows)

    return Leaf(geometry, load)
