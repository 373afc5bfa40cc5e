r"""Move per-channel operations to where a convolution can take them.

A scale behind ``permute``, ``flatten`` or a mean acts on the same channels before it, and the other
way round; one behind ``cat`` acts on each part, and one on a part acts behind ``cat`` on those
channels alone; one behind a sum acts on each term, where it shifts one of them only,
:math:`s (a + b) + t = (s a + t) + s b`; one on a term acts behind the sum where what makes the
other terms takes its inverse, :math:`(s a + t) + v = s (a + v / s) + t`, and what else reads these
their factors back; one that several layers read can be handed to each of them.
A moved operation keeps its key: where its region is folded, it becomes the identity where it
stands.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TypeGuard

from reparam.algebra import compose, shift_before
from reparam.errors import InexactError
from reparam.planner.crossing import (
    Channels,
    after,
    ahead_of,
    can_divide,
    can_pass_shift,
    keeps_order,
    spreads,
)
from reparam.planner.sums import regroup
from reparam.planner.wiring import Place, Wiring, all_of, copied, is_idle
from reparam.program import (
    Affine,
    Alias,
    Concat,
    HostedInput,
    Layout,
    Node,
    Padded,
    Program,
    Routed,
    Sum,
)


class Direction(enum.Enum):
    """Which way an operation moves."""

    BACKWARD = "backward"
    FORWARD = "forward"
    INWARD = "inward"


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
    moves = list(_regrouped(mover, program, excluded))
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


def _regrouped(
    mover: Wiring, program: Program, excluded: set[tuple[Hashable, Direction]]
) -> Iterator[Move]:
    """Move sums to between branches of one value."""
    for node in program.nodes:
        if isinstance(node, Sum) and (node.key, Direction.INWARD) not in excluded:
            made = regroup(mover, node)
            if made is not None:
                yield Move(node, Direction.INWARD, (made,))


def _is_free(node: Node) -> TypeGuard[Affine]:
    return isinstance(node, Affine) and node.is_diagonal and not node.leaf.geometry.dims


class _Mover(Wiring):
    """Moves operations one step at a time."""

    def move(self, node: Affine, direction: Direction) -> tuple[Affine, ...]:
        """Move an operation one step; none are its copies where it cannot go."""
        if direction is Direction.FORWARD:
            places = self._into_readers(node) or self._over_sum(node) or self._over_shift(node)
        else:
            places = self._upwards(node) or self._into_parts(node) or self._into_terms(node)
        return self.install(node, places)

    def _upwards(self, node: Affine) -> list[Place]:
        """Move an operation before what moves elements, back to what makes them."""
        value, channels = self.inputs[node][0], all_of(node)
        reader: Node = node
        far = False
        while self.is_read_apart(value) and (
            self.is_alias(value) or (self._spreads(value, node) and not _is_crop(value))
        ):
            crossed = self._ahead_of(value, channels)
            if crossed is None:
                return []
            far |= not self.is_alias(value)
            value, reader, channels = self.inputs[value][0], value, crossed
        fits = reader is node or node.axis == self.inputs[node][0].axis
        if not far or not fits or not self.is_made(value) or not self.is_read_apart(value):
            return []
        if value.axis is None or self.channels_of(value) != len(channels):
            return []
        copy = copied(node, value, value.axis, channels)
        return [(r, value, copy) for r in self.content_readers(value)]

    def _ahead_of(self, value: Node, channels: Channels) -> Channels | None:
        if not isinstance(value, Routed):
            return channels
        width = self.channels_of(self.inputs[value][0])
        return None if width is None else ahead_of(value, channels, width)

    def _into_parts(self, node: Affine) -> list[Place]:
        """Split an operation behind ``cat`` into one for each part."""
        joined = self.behind_aliases(node)
        if not isinstance(joined, Concat) or node.axis != joined.axis:
            return []
        places: list[Place] = []
        start = 0
        channels = all_of(node)
        values = self.inputs[joined]
        for value, size in zip(values, self.sizes_of(joined), strict=True):
            if size is None or not self.is_read_apart(value) or values.count(value) > 1:
                return []
            if not (self.is_made(value) or self._absorbs(value)):
                return []
            copy = copied(node, value, value.axis, channels[start : start + size])
            places += [(reader, value, copy) for reader in self.content_readers(value)]
            start += size
        return places if start == len(channels) else []

    def _into_terms(self, node: Affine) -> list[Place]:
        """Split an operation behind a sum into one for each term; one of them takes the shift."""
        total = self.behind_aliases(node)
        if not isinstance(total, Sum) or node.axis != total.axis:
            return []
        terms = self.inputs[total]
        if len(set(terms)) != len(terms) or not all(map(self._absorbs, terms)):
            return []
        if any(self.channels_of(t) != len(all_of(node)) or t.axis != node.axis for t in terms):
            return []
        taker = max(range(len(terms)), key=lambda k: total.coefficients[k] == 1)
        places: list[Place] = []
        for k, (term, factor) in enumerate(zip(terms, total.coefficients, strict=True)):
            shift = 1 / factor if k == taker and factor else 0.0
            copy = copied(node, term, term.axis, all_of(node), shift=shift, share=len(terms))
            places += [(reader, term, copy) for reader in self.content_readers(term)]
        return places if total.coefficients[taker] else []

    def _absorbs(self, value: Node) -> bool:
        """Whether layers that make a value can take a scale and shift of it."""
        if not self.is_read_apart(value):
            return False
        if value.is_layer:
            return True
        parted = isinstance(value, Sum | Concat)
        if parted or self.is_alias(value) or self.is_scaling(value) or spreads(value):
            return all(map(self._absorbs, self.inputs[value]))
        return isinstance(value, Routed) and self._absorbs(self.inputs[value][0])

    def _into_readers(self, node: Affine) -> list[Place]:
        """Hand an operation to the layers that read it, behind what stands in between.

        That can be a permutation, a flattening or an average, and several layers may read it.
        """
        readers = self.content_readers(node)
        if self._is_taken(node):
            return []
        if len(readers) == 1 and self._behind(readers[0], node) is None:
            return []  # it can go no further than it is
        if node in self.pinned or not all(self._leads_on(r, node) for r in readers):
            return []
        places: list[Place] = []
        # A copy leaves nothing behind, so that a layer still reads what was padded for it.
        here = self.inputs[node][0] if node.is_copy else node
        for reader in readers:
            copy = self._behind(reader, node, share=len(readers))
            if copy is not None:
                places += [(r, reader, copy) for r in self.content_readers(reader)]
            else:
                copy = copied(node, here, node.axis, all_of(node), share=len(readers))
                places.append((reader, node, copy))
        return places

    def _is_taken(self, node: Affine) -> bool:
        """Whether the layer before an operation can take it whole."""
        before = self.inputs[node][0]
        return self.is_read_once(before) and before.is_layer

    def _over_sum(self, node: Affine) -> list[Place]:
        r"""Move an operation on one term of a sum behind it: :math:`D(a) + v = D(a + v / s)`.

        The other terms are divided by its factors, in what makes them, and multiplied by them
        again, in layers that read them beside the sum.
        """
        readers = self.content_readers(node)
        total = readers[0] if len(readers) == 1 and node not in self.pinned else None
        if not isinstance(total, Sum) or total in self.pinned or total.axis != node.axis:
            return []
        terms = self.inputs[total]
        others = [term for term in terms if term is not node]
        if self._is_taken(node) or len(set(terms)) != len(terms) or not can_divide(node):
            return []
        behind = copied(
            node, total, total.axis, all_of(node),
            shift=total.coefficients[terms.index(node)],
        )  # fmt: skip
        onward = self.content_readers(total)
        if not onward or not all(self._leads_on(r, behind) for r in onward):
            return []
        places: list[Place] = [(r, total, behind) for r in onward]
        for term in others:
            more = self._divided(term, node, total)
            if not more:
                return []
            places += more
        return places

    def _over_shift(self, node: Affine) -> list[Place]:
        r"""Move a scale behind the addition of constants: :math:`s x + b = s (x + b / s)`.

        Layers that pad with zeros take the scale and not the shift.
        """
        readers = self.content_readers(node)
        shift = readers[0] if len(readers) == 1 and node not in self.pinned else None
        if not isinstance(shift, Affine) or not self.is_scaling(shift) or shift in self.pinned:
            return []
        moved = node.moved is not None or shift.moved is not None or self._is_taken(node)
        onward = self.content_readers(shift)
        if moved or not onward or node.axis != shift.axis or not can_pass_shift(node, shift):
            return []
        takes = [r.is_layer and _takes(r, node) and not _takes(r, shift) for r in onward]
        if not all(takes):
            return []
        ahead = replace(shift, leaf=shift_before(node.leaf, shift.leaf))
        self.put_in_place_of(shift, ahead)
        places: list[Place] = []
        for reader in onward:
            back = copied(node, ahead, ahead.axis, all_of(node), share=len(onward))
            assert back.moved is not None  # noqa: S101 (it is a copy)
            back = replace(back, moved=replace(back.moved, past=ahead))
            places.append((reader, ahead, back))
        return places

    def _divided(self, term: Node, node: Affine, total: Node) -> list[Place]:
        """Divide a term of a sum by the factors of an operation, for the sum alone."""
        made = self.is_made(term) and not isinstance(term, Sum | Concat)
        takes = isinstance(term, Affine) and (term.is_layer or term.is_norm)
        if not made or not takes or term in self.pinned or term.axis != node.axis:
            return []
        if self.channels_of(term) != len(all_of(node)):
            return []
        less = copied(node, term, term.axis, all_of(node), shift=0.0, share=0, inverse=True)
        back = copied(node, less, term.axis, all_of(node), shift=0.0, share=0)
        places: list[Place] = [(total, term, less)]
        for reader in self.content_readers(term):
            if reader is not total:
                if not reader.is_layer or not _takes(reader, back):
                    return []
                places.append((reader, term, back))
        return places

    def _leads_on(self, reader: Node, node: Affine) -> bool:
        """Whether an operation before ``reader`` can go into layers there or further on."""
        if reader.is_layer:
            return _takes(reader, node)
        if self.is_scaling(reader):
            there: Affine | None = copied(node, reader, reader.axis, all_of(node))
        else:
            there = self._behind(reader, node)
        # Channels on several axes can only be passed.
        placed = reader.axis is not None or isinstance(reader, Layout | Alias)
        if there is None or not placed or reader in self.pinned:
            return False
        if is_idle(there):
            return True
        onward = self.content_readers(reader)
        # A layer takes it on the axis that it has there.
        return bool(onward) and all(self._leads_on(r, there) for r in onward)

    def _behind(self, reader: Node, node: Affine, share: int = 1) -> Affine | None:
        """An operation once more behind a node that reads what it returns; None if that differs."""
        channels: Channels | None = None
        if isinstance(reader, Routed):
            channels = after(reader, all_of(node))
        elif isinstance(reader, HostedInput):
            channels = _spread(reader, node)
        elif isinstance(reader, Concat):
            channels = self._joined(reader, node) if reader.axis == node.axis else None
        elif self._spreads(reader, node) or self.is_alias(reader):
            same = not isinstance(reader, Affine | Padded) or reader.axis in {None, node.axis}
            channels = all_of(node) if same else None
        return (
            None if channels is None else copied(node, reader, reader.axis, channels, share=share)
        )

    def _joined(self, joined: Concat, node: Node) -> Channels | None:
        """Channels of an operation on one part, behind the ``cat`` of all parts."""
        found: list[int | None] = []
        for value, size in zip(self.inputs[joined], self.sizes_of(joined), strict=True):
            if size is None:
                return None
            found += range(size) if value is node else [None] * size
        return tuple(found)

    def _spreads(self, value: Node, node: Affine) -> bool:
        """Whether a node moves elements so that a per-channel operation stays one across it."""
        if isinstance(value, Layout) and value.monotone:
            return keeps_order(node)
        return isinstance(value, Routed) or (spreads(value) and not isinstance(value, Alias))


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


def _spread(reader: HostedInput, node: Affine) -> Channels | None:
    """A scale on the input of a layer, on what the layer makes of it; a shift is not seen alike."""
    if reader.spread is None or node.leaf.geometry.bias or reader.axis != node.axis:
        return None
    return tuple(all_of(node)[channel] for channel in reader.spread)


def _is_crop(value: Node) -> bool:
    """Whether an operator takes elements off and does nothing else: it folds with any other."""
    return isinstance(value, Affine) and value.leaf.geometry.taps == 1
