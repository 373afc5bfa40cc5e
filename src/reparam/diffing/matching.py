"""Are two values the same function of the inputs, number by number; and if not, where not?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reparam.algebra import AffineConv, Geometry, parallel
from reparam.diffing.kinds import COMMUTATIVE
from reparam.diffing.running import reads
from reparam.diffing.values import (
    Atom,
    Constant,
    Cut,
    Form,
    Input,
    Map,
    Operation,
    Sized,
    as_map,
)  # fmt: skip
from reparam.errors import InexactError

_LOCAL = ("attribute", "bias", "constant", "geometry", "shape", "weight")

ROUNDINGS = 16
"""Roundings that a stored number may have gone through: a batch norm folded in the type of the
weights costs seven, and a fold of two layers and a sum less than twice that."""


@dataclass(frozen=True, eq=False, slots=True)
class Match:
    """Two values are the same.

    Attributes:
        worst: Largest difference of two numbers, as a share of what rounding explains.

    """

    worst: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Parting:
    """Two values differ, or were not shown to be the same.

    Attributes:
        left: The value of the first network, below which everything is the same.
        right: The value of the second that it was compared with.
        what: What differs: a key of ``difference.PARTINGS``.
        detail: Numbers and names that go with it.
        depth: Minus the distance from the inputs.
        sure: Whether the two certainly belong together.
        numbers: All numbers of both, where one of them differs.

    """

    left: Form | Atom
    right: Form | Atom
    what: str
    detail: dict[str, object]
    depth: int
    sure: bool = True
    numbers: tuple[Tensor | None, Tensor | None] = (None, None)

    @property
    def local(self) -> bool:
        """Whether both values are computed from the same operands, so that they alone differ."""
        return self.what in _LOCAL

    @property
    def exchangeable(self) -> bool:
        """Whether one value can stand in the place of the other."""
        return self.sure and self.local and self.left.shape == self.right.shape


Outcome = Match | Parting

_Pair = tuple[Atom, Map | Sized, Map | Sized, Match]
"""An atom, its map on either side, and how it was matched."""


class Matcher:
    """Compare the values of two networks; every pair once."""

    def __init__(self, unit: float) -> None:
        """Prepare to compare numbers whose unit of rounding is ``unit``."""
        self.unit = unit
        self.matched: dict[int, Atom] = {}
        self.numbers = 0
        self.worst = 0.0
        self._known: dict[tuple[int, int], Outcome] = {}
        self._depths: dict[int, int] = {}
        self._alive: list[object] = []

    def forms(self, left: Form, right: Form) -> Outcome:
        """Compare two values."""
        key = (id(left), id(right))
        if key not in self._known:
            self._alive += (left, right)
            self._known[key] = self._forms(left, right)
        return self._known[key]

    def atoms(self, left: Atom, right: Atom) -> Outcome:
        """Compare two atoms."""
        key = (id(left), id(right))
        if key not in self._known:
            self._alive += (left, right)
            outcome = self._atoms(left, right)
            self._known[key] = outcome
            if isinstance(outcome, Match):
                self.matched[id(right)] = left
        return self._known[key]

    def _parting(
        self, left: Form | Atom, right: Form | Atom, what: str, /, **detail: object
    ) -> Parting:
        return Parting(left, right, what, detail, self._depth(left))

    def _parted(
        self, left: Form | Atom, right: Form | Atom, what: str,
        found: tuple[Tensor, Tensor, Tensor], place: int,
    ) -> Parting:  # fmt: skip
        parting = self._parting(left, right, what, **_telling(found, place))
        return replace(parting, numbers=found[:2])

    def _forms(self, left: Form, right: Form) -> Outcome:
        pairs = self._pairs(left, right)
        if isinstance(pairs, Parting):
            return pairs
        if left.shape != right.shape:
            sizes = {"left": tuple(left.shape), "right": tuple(right.shape)}
            return self._parting(left, right, "shape", **sizes)
        if None not in (left.axis, right.axis) and right.axis != left.axis:
            return self._parting(left, right, "axis", left=left.axis, right=right.axis)
        axis = left.axis if left.axis is not None else right.axis
        channels = None if axis is None else left.shape[axis]
        try:
            outcome = self._numbers(left, right, pairs, channels)
        except InexactError as error:
            return self._parting(left, right, "geometry", why=str(error))
        if isinstance(outcome, Match):
            self.worst = max(self.worst, outcome.worst)
        return outcome

    def _numbers(
        self, left: Form, right: Form, pairs: Sequence[_Pair], channels: int | None
    ) -> Outcome:
        """Compare the maps of atoms that are the same, and what is added."""
        worst = max((outcome.worst for *_, outcome in pairs), default=0.0)
        for _, first, second, _ in pairs:
            ratio, place = self._maps(first, second, channels)
            if not ratio <= 1:
                found = _maps(first, second, channels)
                return self._parted(left, right, "weight", found, place)
            worst = max(worst, ratio)
        found = _constants(left.bias, right.bias, channels)
        self.numbers += found[0].numel()
        ratio, place = self._furthest(*found)
        if not ratio <= 1:
            return self._parted(left, right, "bias", found, place)
        return Match(max(worst, ratio))

    def _pairs(self, left: Form, right: Form) -> list[_Pair] | Parting:
        """Pair the atoms of two forms, each with an equal one."""
        remaining = list(right.terms)
        alone = []
        pairs = []
        for atom, m in left.terms:
            for position, (other, n) in enumerate(remaining):
                outcome = self.atoms(atom, other)
                if isinstance(outcome, Match):
                    pairs.append((atom, m, n, outcome))
                    del remaining[position]
                    break
            else:
                alone.append(atom)
        if not alone and not remaining:
            return pairs
        others = [other for other, _ in remaining]
        # What one network composes and the other does not parts where it is composed.
        composed = [any(isinstance(atom, Cut) for atom in atoms) for atoms in (alone, others)]
        if len(alone) != len(others) or composed[0] != composed[1]:
            counts = {"left": len(alone), "right": len(others)}
            return self._parting(left, right, "structure", **counts)
        found = [self.atoms(atom, other) for atom in alone for other in others]
        partings = [each for each in found if isinstance(each, Parting)]
        best = max(partings, key=_rank)
        # Which of several belong together is not known, unless one place explains all of them.
        if sum(_place(each) == _place(best) for each in partings) < len(alone):
            return replace(best, sure=False)
        return best

    def _atoms(self, left: Atom, right: Atom) -> Outcome:
        match left, right:
            case Input(index=first), Input(index=second) if first == second:
                return Match()
            case Constant(), Constant() if left.shape == right.shape:
                found = _joined(left.numbers, right.numbers)
                ratio, place = self._furthest(*found)
                if not ratio <= 1:
                    return self._parted(left, right, "constant", found, place)
                return Match(ratio)
            case Cut(form=first), Cut(form=second):
                return self.forms(first, second)
            case Operation(), Operation() if left.kind == right.kind:
                return self._operations(left, right)
        return self._parting(left, right, "structure")

    def _operations(self, left: Operation, right: Operation) -> Outcome:
        if len(left.args) != len(right.args):
            return self._parting(left, right, "structure")
        best: list[Parting] | None = None
        for order in _orders(left, right):
            outcomes = [self.forms(a, b) for a, b in zip(left.args, order, strict=True)]
            found = [each for each in outcomes if isinstance(each, Parting)]
            if not found:
                if not _same(left.attributes, right.attributes):
                    return self._parting(left, right, "attribute")
                return Match(max(each.worst for each in outcomes if isinstance(each, Match)))
            best = found if best is None or len(found) < len(best) else best
        return max(best or [], key=_rank)

    def _maps(
        self, left: Map | Sized, right: Map | Sized, channels: int | None
    ) -> tuple[float, int]:
        """How far two maps are apart, and where; some rows at a time, which stay near the core."""
        pair = _aligned(left, right, channels)
        if pair is None:
            found = _maps(left, right, channels)
            self.numbers += found[0].numel()
            return self._furthest(*found)
        first, second = pair
        self.numbers += first.kernel.numel()
        if first.is_same(second):
            return 0.0, 0
        width = first.kernel[0].numel()
        step = max(1, _AT_ONCE // max(width, 1))
        furthest = 0.0, 0
        for start in range(0, len(first.kernel), step):
            some = slice(start, start + step)
            size = torch.maximum(first.sizes(some), second.sizes(some))
            ratio, place = self._furthest(first.numbers(some), second.numbers(some), size)
            if not ratio <= furthest[0]:
                furthest = ratio, place + start * width
            if not ratio <= 1:  # numbers that are none among them
                break
        return furthest

    def _furthest(self, left: Tensor, right: Tensor, size: Tensor) -> tuple[float, int]:
        if not left.numel():
            return 0.0, 0
        # In place, as these arrays are as large as all weights.
        allowed = (ROUNDINGS * self.unit * size).clamp_min_(torch.finfo(torch.float64).tiny)
        ratio = (left - right).abs_().div_(allowed)
        place = int(ratio.argmax())
        return float(ratio.flatten()[place]), place

    def _depth(self, value: Form | Atom) -> int:
        stack: list[Form | Atom] = [value]
        while stack:
            top = stack[-1]
            waiting = [each for each in reads(top) if id(each) not in self._depths]
            if waiting:
                stack += waiting
                continue
            self._alive.append(top)
            self._depths[id(top)] = 1 + max((self._depths[id(e)] for e in reads(top)), default=0)
            stack.pop()
        return -self._depths[id(value)]


def _rank(parting: Parting) -> tuple[bool, int]:
    """Partings whose operands are all the same come first, then those nearest to the inputs."""
    return parting.local, parting.depth


def _place(parting: Parting) -> tuple[object, ...]:
    """Where and how two networks part; copies of one value, laid out anew, part alike."""
    places = (getattr(each, "where", id(each)) for each in (parting.left, parting.right))
    return parting.what, *places


def _orders(left: Operation, right: Operation) -> Iterator[tuple[Form, ...]]:
    yield right.args
    if left.kind in COMMUTATIVE:
        yield right.args[::-1]


def _same(left: tuple[tuple[str, object], ...], right: tuple[tuple[str, object], ...]) -> bool:
    return len(left) == len(right) and all(
        name == other and _alike(value, also)
        for (name, value), (other, also) in zip(left, right, strict=True)
    )


def _alike(left: object, right: object) -> bool:
    """Equal, or numbers that two formats store in different types."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6)
    return left == right


_AT_ONCE = 1 << 16
"""Numbers that are compared at once."""


def _as_maps(left: Map | Sized, right: Map | Sized, channels: int | None) -> tuple[Map, Map]:
    """Two maps of as many dimensions."""
    first, second = (as_map(m, channels) for m in (left, right))
    dims = max(first.geometry.dims, second.geometry.dims)
    return first.in_dims(dims), second.in_dims(dims)


def _aligned(left: Map | Sized, right: Map | Sized, channels: int | None) -> tuple[Map, Map] | None:
    """Two maps as they are, if their numbers lie on one grid."""
    if isinstance(left, Sized) and isinstance(right, Sized):
        return None
    first, second = _as_maps(left, right, channels)
    return (first, second) if first.geometry == second.geometry else None


def _maps(
    left: Map | Sized, right: Map | Sized, channels: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Two maps as kernels on one grid, and the larger of their sizes."""
    if isinstance(left, Sized) and isinstance(right, Sized):
        return _joined(left, right)
    first, second = _as_maps(left, right, channels)
    geometry = parallel(first.geometry, second.geometry)
    ours, others, *sizes = (
        _on_grid(op, geometry) for op in (first.value, second.value, first.size, second.size)
    )
    return ours, others, torch.maximum(*sizes)


def _on_grid(op: AffineConv, geometry: Geometry) -> Tensor:
    if op.geometry.offsets == geometry.offsets and op.geometry.groups == geometry.groups:
        return op.kernel
    return (AffineConv(geometry, op.kernel.new_zeros(geometry.kernel_shape)) + op).kernel


def _constants(
    left: Sized | None, right: Sized | None, channels: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    both = [left or Sized.of(0.0), right or Sized.of(0.0)]
    dims = max(each.value.dim() for each in both)
    if dims < 2:
        return _joined(*(each.spread(channels or 1) for each in both))
    first, second = (each.over(dims) for each in both)
    shape = torch.broadcast_shapes(first.value.shape, second.value.shape)
    return _joined(*(each.each(lambda numbers: numbers.expand(shape)) for each in (first, second)))


def _joined(left: Sized, right: Sized) -> tuple[Tensor, Tensor, Tensor]:
    return left.value, right.value, torch.maximum(left.size, right.size)


def _telling(found: tuple[Tensor, Tensor, Tensor], place: int) -> dict[str, object]:
    left, right, size = found
    index = tuple(int(k) for k in torch.unravel_index(torch.tensor(place), left.shape))
    return {
        "index": index,
        "left": float(left.flatten()[place]),
        "right": float(right.flatten()[place]),
        "size": float(size.flatten()[place]),
    }
