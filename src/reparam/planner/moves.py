r"""Move per-channel operations to where a convolution can take them.

A scale behind ``permute``, ``flatten`` or a mean acts on the same channels before it, and the other
way round; one behind ``cat`` acts on each part, and one on a part acts behind ``cat`` on those
channels alone; one behind a sum acts on each term, where it shifts one of them only,
:math:`s (a + b) + t = (s a + t) + s b`; one that several layers read can be handed to each of them.
A moved operation keeps its key: where its region is folded, it becomes the identity where it
stands.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TypeGuard

from reparam.algebra import compose, rerouted
from reparam.errors import InexactError
from reparam.planner.crossing import Channels, after, ahead_of, are_parts, keeps_order, spreads
from reparam.program import (
    Affine,
    Alias,
    Concat,
    Layout,
    Moved,
    Node,
    Padded,
    Program,
    Routed,
    ShapeOf,
    Sum,
)

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
        self._widths: dict[Node, int | None] = {}

    def has_left(self, node: Node) -> bool:
        """Whether an operation was moved from where this node stands."""
        return node in self._left

    def move(self, node: Affine, direction: Direction) -> tuple[Affine, ...]:
        """Move an operation one step; none are its copies where it cannot go."""
        if direction is Direction.FORWARD:
            places = self._into_readers(node)
        else:
            places = self._upwards(node) or self._into_parts(node) or self._into_terms(node)
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

    def _upwards(self, node: Affine) -> list[_Place]:
        """Move an operation before what moves elements, back to what makes them."""
        value, channels = self._inputs[node][0], _all_of(node)
        reader: Node = node
        far = False
        while self._is_read_apart(value) and (
            self._is_alias(value) or (self._spreads(value, node) and not _is_crop(value))
        ):
            crossed = self._ahead_of(value, channels)
            if crossed is None:
                return []
            far |= not self._is_alias(value)
            value, reader, channels = self._inputs[value][0], value, crossed
        fits = reader is node or node.axis == self._inputs[node][0].axis
        if not far or not fits or not self._is_made(value) or not self._is_read_apart(value):
            return []
        if value.axis is None or self._channels_of(value) != len(channels):
            return []
        copy = _copy(node, value, value.axis, channels)
        return [(r, value, copy) for r in self._content_readers(value)]

    def _ahead_of(self, value: Node, channels: Channels) -> Channels | None:
        if not isinstance(value, Routed):
            return channels
        width = self._channels_of(self._inputs[value][0])
        return None if width is None else ahead_of(value, channels, width)

    def _into_parts(self, node: Affine) -> list[_Place]:
        """Split an operation behind ``cat`` into one for each part."""
        joined = self._behind_aliases(node)
        if not isinstance(joined, Concat) or node.axis != joined.axis:
            return []
        places: list[_Place] = []
        start = 0
        channels = _all_of(node)
        values = self._inputs[joined]
        for value, size in zip(values, self._sizes_of(joined), strict=True):
            if size is None or not self._is_read_apart(value) or values.count(value) > 1:
                return []
            if not (self._is_made(value) or self._absorbs(value)):
                return []
            copy = _copy(node, value, value.axis, channels[start : start + size])
            places += [(reader, value, copy) for reader in self._content_readers(value)]
            start += size
        return places if start == len(channels) else []

    def _into_terms(self, node: Affine) -> list[_Place]:
        """Split an operation behind a sum into one for each term; one of them takes the shift."""
        total = self._behind_aliases(node)
        if not isinstance(total, Sum) or node.axis != total.axis:
            return []
        terms = self._inputs[total]
        if len(set(terms)) != len(terms) or not all(map(self._absorbs, terms)):
            return []
        if any(self._channels_of(t) != len(_all_of(node)) or t.axis != node.axis for t in terms):
            return []
        taker = max(range(len(terms)), key=lambda k: total.coefficients[k] == 1)
        places: list[_Place] = []
        for k, (term, factor) in enumerate(zip(terms, total.coefficients, strict=True)):
            shift = 1 / factor if k == taker and factor else 0.0
            copy = _copy(node, term, term.axis, _all_of(node), shift=shift, share=len(terms))
            places += [(reader, term, copy) for reader in self._content_readers(term)]
        return places if total.coefficients[taker] else []

    def _behind_aliases(self, node: Affine) -> Node | None:
        """What makes the input of an operation, if nothing else reads it on the way."""
        value = self._inputs[node][0]
        while self._is_read_once(value) and self._is_alias(value):
            value = self._inputs[value][0]
        return value if self._is_read_once(value) else None

    def _absorbs(self, value: Node) -> bool:
        """Whether layers that make a value can take a scale and shift of it."""
        if not self._is_read_apart(value):
            return False
        if value.is_layer:
            return True
        parted = isinstance(value, Sum | Concat)
        if parted or self._is_alias(value) or self._is_scaling(value) or spreads(value):
            return all(map(self._absorbs, self._inputs[value]))
        return isinstance(value, Routed) and self._absorbs(self._inputs[value][0])

    def _into_readers(self, node: Affine) -> list[_Place]:
        """Hand an operation to the layers that read it, behind what stands in between.

        That can be a permutation, a flattening or an average, and several layers may read it.
        """
        readers = self._content_readers(node)
        before = self._inputs[node][0]
        if self._is_read_once(before) and before.is_layer:
            return []  # the layer before can take it whole
        if len(readers) == 1 and self._behind(readers[0], node) is None:
            return []  # it can go no further than it is
        if node in self._pinned or not all(self._leads_on(r, node) for r in readers):
            return []
        places: list[_Place] = []
        for reader in readers:
            copy = self._behind(reader, node, share=len(readers))
            if copy is not None:
                places += [(r, reader, copy) for r in self._content_readers(reader)]
            else:
                copy = _copy(node, node, node.axis, _all_of(node), share=len(readers))
                places.append((reader, node, copy))
        return places

    def _leads_on(self, reader: Node, node: Affine) -> bool:
        """Whether an operation before ``reader`` can go into layers there or further on."""
        if reader.is_layer:
            return _takes(reader, node)
        if self._is_scaling(reader):
            there: Affine | None = _copy(node, reader, reader.axis, _all_of(node))
        else:
            there = self._behind(reader, node)
        # Channels on several axes can only be passed.
        placed = reader.axis is not None or isinstance(reader, Layout | Alias)
        if there is None or not placed or reader in self._pinned:
            return False
        if _is_idle(there):
            return True
        onward = self._content_readers(reader)
        # A layer takes it on the axis that it has there.
        return bool(onward) and all(self._leads_on(r, there) for r in onward)

    def _behind(self, reader: Node, node: Affine, share: int = 1) -> Affine | None:
        """An operation once more behind a node that reads what it returns; None if that differs."""
        channels: Channels | None = None
        if isinstance(reader, Routed):
            channels = after(reader, _all_of(node))
        elif isinstance(reader, Concat):
            channels = self._joined(reader, node) if reader.axis == node.axis else None
        elif self._spreads(reader, node) or self._is_alias(reader):
            same = not isinstance(reader, Affine | Padded) or reader.axis in {None, node.axis}
            channels = _all_of(node) if same else None
        return None if channels is None else _copy(node, reader, reader.axis, channels, share=share)

    def _sizes_of(self, joined: Concat) -> list[int | None]:
        """Numbers of channels of the parts; one that does not say so has what the others leave."""
        sizes = [self._channels_of(value) for value in self._inputs[joined]]
        total = joined.channels or self._read_by(joined)
        if sizes.count(None) == 1 and total is not None:
            left = total - sum(size for size in sizes if size is not None)
            sizes[sizes.index(None)] = left
        return sizes

    def _joined(self, joined: Concat, node: Node) -> Channels | None:
        """Channels of an operation on one part, behind the ``cat`` of all parts."""
        found: list[int | None] = []
        for value, size in zip(self._inputs[joined], self._sizes_of(joined), strict=True):
            if size is None:
                return None
            found += range(size) if value is node else [None] * size
        return tuple(found)

    def _spreads(self, value: Node, node: Affine) -> bool:
        """Whether a node moves elements so that a per-channel operation stays one across it."""
        if isinstance(value, Layout) and value.monotone:
            return keeps_order(node)
        return isinstance(value, Routed) or (spreads(value) and not isinstance(value, Alias))

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

    def _is_read_apart(self, value: Node) -> bool:
        """Whether one alone reads a value, or several that read different channels of it."""
        if value in self._pinned:
            return False
        readers = self._content_readers(value)
        return len(readers) == 1 or (len(readers) > 1 and are_parts(readers))

    def _channels_of(self, value: Node) -> int | None:
        """Number of channels of a value, as it says, or what makes it or reads it."""
        if value not in self._widths:
            self._widths[value] = self._find_channels(value)
        return self._widths[value]

    def _find_channels(self, value: Node) -> int | None:
        match value:
            case Affine(leaf=leaf):
                return leaf.geometry.out_channels
            case Routed(origins=origins):
                return len(origins)
            case Concat():
                parts = [self._channels_of(v) for v in self._inputs[value]]
                return None if None in parts else sum(p for p in parts if p is not None)
            case Sum():
                sizes = {self._channels_of(term) for term in self._inputs[value]} - {None}
                return sizes.pop() if len(sizes) == 1 else None
        if value.channels is None and (isinstance(value, Alias) or spreads(value)):
            return self._channels_of(self._inputs[value][0])
        return value.channels or self._read_by(value)

    def _read_by(self, value: Node) -> int | None:
        """Number of channels that the layers and scales which read a value expect of it."""
        readers = (r for r in self._users[value] if isinstance(r, Affine) and r.axis == value.axis)
        return next((r.leaf.geometry.in_channels for r in readers), None)

    def _install(self, node: Affine, places: list[_Place]) -> tuple[Affine, ...]:
        """Put copies between readers and what they read; the original passes its input on."""
        places = [place for place in places if not _is_idle(place[2])]
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


def _all_of(node: Affine) -> Channels:
    return tuple(range(node.leaf.geometry.out_channels))


def _copy(
    node: Affine, source: Node, axis: int | None, channels: Channels, *, shift: float = 1.0,
    share: int = 1,
) -> Affine:  # fmt: skip
    """An operation once more, on some of its channels of another value.

    Args:
        node: The operation.
        source: The value.
        axis: Channel axis of the value.
        channels: Those of the operation that act on the channels of the value.
        shift: How often it adds what the operation adds.
        share: Among how many the operation is divided; each has that part of its numbers.

    """
    every = _all_of(node)
    whence = node.moved or Moved(node.axis, len(every), every)
    act = tuple(None if c is None else whence.channels[c] for c in channels)
    same = (channels, shift) == (every, 1.0)
    part = len(set(act) - {None}), len(set(whence.channels) - {None}) * share
    return replace(
        node, inputs=(source,), axis=axis,
        leaf=node.leaf if same else rerouted(node.leaf, channels, shift=shift),
        stored=node.stored * part[0] // part[1],
        moved=replace(whence, channels=act, shift=whence.shift * shift),
    )  # fmt: skip


def _is_crop(value: Node) -> bool:
    """Whether an operator takes elements off and does nothing else: it folds with any other."""
    return isinstance(value, Affine) and value.leaf.geometry.taps == 1


def _is_idle(copy: Affine) -> bool:
    """Whether an operation acts on none of the channels that it was moved to."""
    return copy.moved is not None and set(copy.moved.channels) <= {None}
