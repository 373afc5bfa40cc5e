"""A program whose wires change: what each node reads, and what only passes its input on."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from reparam.algebra import rerouted
from reparam.planner.crossing import Channels, are_parts, spreads
from reparam.program import (
    Affine,
    Alias,
    Concat,
    Moved,
    Node,
    Program,
    Routed,
    ShapeOf,
    Sum,
)


class Wiring:
    """What the nodes of a program read now.

    Attributes:
        nodes: All nodes, each behind what it reads.
        pinned: Those that are seen from outside.
        inputs: What each reads.
        users: What reads each.
        left: Operations that were moved from where they stand, and return their input there.

    """

    def __init__(self, program: Program) -> None:
        self.nodes = list(program.nodes)
        self.pinned = program.pinned
        self.inputs = {node: node.inputs for node in program.nodes}
        self.users = program.users()
        self.left: set[Affine | Sum] = set()
        self._widths: dict[Node, int | None] = {}

    def has_left(self, node: Node) -> bool:
        """Whether an operation was moved from where this node stands."""
        return node in self.left

    def program(self) -> tuple[Program, dict[Node, Node]]:
        """Write the nodes anew as they are wired now, and say which became which."""
        now: dict[Node, Node] = {}
        for node in self._sorted():
            inputs = tuple(now[v] for v in self.inputs[node])
            if node in self.left:
                now[node] = Alias(
                    inputs=inputs, key=node.key, order=node.order, what=node.what,
                    where=node.where, axis=node.axis, origin=node.origin,
                    moved=node.moved if isinstance(node, Affine) else None,
                )  # fmt: skip
            else:
                now[node] = node if inputs == node.inputs else replace(node, inputs=inputs)
        return Program(tuple(now.values()), frozenset(now[n] for n in self.pinned)), now

    def _sorted(self) -> list[Node]:
        """All nodes, each behind what it reads, and else in the order in which they stand."""
        done: dict[Node, None] = {}
        for node in self.nodes:
            waiting = [node]
            while waiting:
                fresh = [v for v in self.inputs[waiting[-1]] if v not in done]
                if fresh:
                    waiting.append(fresh[0])
                else:
                    done[waiting.pop()] = None
        return list(done)

    def content_readers(self, value: Node) -> list[Node]:
        """What reads a value and not its shape alone."""
        return [
            user
            for user in self.users[value]
            if not isinstance(user, ShapeOf) and not self._is_spent(user)
        ]

    def _is_spent(self, node: Node) -> bool:
        """Whether a node is a copy that went on from here, with all that read it."""
        return node in self.left and node.is_copy and not self.users[node]

    def is_read_once(self, value: Node) -> bool:
        """Whether one alone reads a value."""
        return value not in self.pinned and len(self.content_readers(value)) == 1

    def is_read_apart(self, value: Node) -> bool:
        """Whether one alone reads a value, or several that read different channels of it."""
        if value in self.pinned:
            return False
        readers = self.content_readers(value)
        return len(readers) == 1 or (len(readers) > 1 and are_parts(readers))

    def is_scaling(self, node: Node) -> bool:
        """Whether a node scales and shifts each channel where it stands."""
        return node.is_diagonal and node not in self.left

    def is_alias(self, node: Node) -> bool:
        """Whether a node returns its input."""
        return isinstance(node, Alias) or node in self.left

    def is_made(self, value: Node) -> bool:
        """Whether something may be put behind what makes a value."""
        return isinstance(value, Affine | Sum | Concat) and value not in self.left

    def behind_aliases(self, node: Affine) -> Node | None:
        """What makes the input of an operation, if nothing else reads it on the way."""
        value = self.inputs[node][0]
        while self.is_read_once(value) and self.is_alias(value):
            value = self.inputs[value][0]
        return value if self.is_read_once(value) else None

    def channels_of(self, value: Node) -> int | None:
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
                parts = [self.channels_of(v) for v in self.inputs[value]]
                return None if None in parts else sum(p for p in parts if p is not None)
            case Sum():
                sizes = {self.channels_of(term) for term in self.inputs[value]} - {None}
                return sizes.pop() if len(sizes) == 1 else None
        if value.channels is None and (isinstance(value, Alias) or spreads(value)):
            return self.channels_of(self.inputs[value][0])
        return value.channels or self._read_by(value)

    def _read_by(self, value: Node) -> int | None:
        """Number of channels that the layers and scales which read a value expect of it."""
        readers = (r for r in self.users[value] if isinstance(r, Affine) and r.axis == value.axis)
        return next((r.leaf.geometry.in_channels for r in readers), None)

    def sizes_of(self, joined: Concat) -> list[int | None]:
        """Numbers of channels of the parts; one that does not say so has what the others leave."""
        sizes = [self.channels_of(value) for value in self.inputs[joined]]
        total = joined.channels or self._read_by(joined)
        if sizes.count(None) == 1 and total is not None:
            left = total - sum(size for size in sizes if size is not None)
            sizes[sizes.index(None)] = left
        return sizes

    def put_in_place_of(self, node: Node, other: Node) -> None:
        """Let another node stand where one does, reading what it reads."""
        self.nodes[self.nodes.index(node)] = other
        self.inputs[other], self.users[other] = self.inputs.pop(node), self.users.pop(node)
        for value in self.inputs[other]:
            self.users[value] = [other if user is node else user for user in self.users[value]]
        for reader in self.users[other]:
            read = self.inputs[reader]
            self.inputs[reader] = tuple(other if value is node else value for value in read)

    def install(self, node: Affine, places: list[Place]) -> tuple[Affine, ...]:
        """Put copies between readers and what they read; the original passes its input on."""
        places = [place for place in places if not is_idle(place[2])]
        copies = tuple(dict.fromkeys(copy for _, _, copy in places))
        for reader, value, copy in places:
            self.inputs[reader] = tuple(copy if v is value else v for v in self.inputs[reader])
            self.users[value].remove(reader)
            self.users.setdefault(copy, []).append(reader)
        for copy in copies:
            source = copy.inputs[0]
            self.inputs[copy] = copy.inputs
            self.users[source].append(copy)
            self.nodes.insert(self.nodes.index(source) + 1, copy)
        if copies:
            self.left.add(node)
        return copies


Place = tuple[Node, Node, Affine]
"""A reader, the value that it reads, and what comes between."""


def all_of(node: Affine) -> Channels:
    """The channels of an operation on a value as wide as itself."""
    return _first(node.leaf.geometry.out_channels)


@lru_cache(maxsize=1024)
def _first(count: int) -> Channels:
    return tuple(range(count))


def copied(
    node: Affine, source: Node, axis: int | None, channels: Channels, *, shift: float = 1.0,
    share: int = 1, inverse: bool = False,
) -> Affine:  # fmt: skip
    """An operation once more, on some of its channels of another value.

    Args:
        node: The operation.
        source: The value.
        axis: Channel axis of the value.
        channels: Those of the operation that act on the channels of the value.
        shift: How often it adds what the operation adds.
        share: Among how many the operation is divided; each has that part of its numbers, and
            none of them where it is zero.
        inverse: Divide by its factors.

    """
    every = all_of(node)
    whence = node.moved or Moved(node.axis, len(every), every)
    act = whence.channels
    if channels is not every:
        act = tuple([None if c is None else act[c] for c in channels])
    same = shift == 1.0 and not inverse and channels == every
    part = _used(act), _used(whence.channels) * share
    return replace(
        node, inputs=(source,), axis=axis,
        leaf=node.leaf if same else rerouted(node.leaf, channels, shift=shift, inverse=inverse),
        stored=node.stored * part[0] // part[1] if share else 0,
        moved=replace(
            whence, channels=act, shift=whence.shift * shift, inverse=whence.inverse != inverse
        ),
    )  # fmt: skip


def is_idle(copy: Affine) -> bool:
    """Whether an operation acts on none of the channels that it was moved to."""
    return copy.moved is not None and not _used(copy.moved.channels)


def _used(channels: Channels) -> int:
    """How many channels of an operation act somewhere."""
    if channels is _first(len(channels)):
        return len(channels)
    return len(set(channels) - {None})
