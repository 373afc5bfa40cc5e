"""Reshapes and permutations one behind another, in the one way in which they are written.

Both leave every element as it is and say where it goes. A value is split into *factors* (a size of
16 may be 4 times 4), the factors are put into another order, and joined. Whatever way a network
takes, splitting no more than the result needs makes the same factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

MOVES = ("permute", "reshape")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Moves:
    """How the elements of a value are laid out anew.

    Attributes:
        source: Shape of the value.
        factors: Sizes that it is split into, in its own order; none is one.
        order: Which factor stands where.
        shape: Shape of the result.

    """

    source: Shape
    factors: Shape
    order: Shape
    shape: Shape

    @classmethod
    def none(cls, shape: Sequence[int]) -> Moves:
        """Leave a value as it is."""
        factors = tuple(n for n in shape if n != 1)
        return cls(tuple(shape), factors, tuple(range(len(factors))), tuple(shape))

    def then(self, kind: str, shape: Sequence[int], order: Sequence[int] = ()) -> Moves | None:
        """Do one more; None where a reshape cuts through factors that do not divide."""
        if kind == "permute":
            groups = _grouped(self.order, self.factors, self.shape)
            moved = tuple(k for axis in order for k in groups[axis])
            return replace(self, order=moved, shape=tuple(shape))
        return self._cut(tuple(shape))

    def steps(self) -> Iterator[tuple[str, Shape, dict[str, Any]]]:
        """The operations: each with the shape that it leads to and its attributes."""
        plain, axes = self._simplest(), self._of_axes()
        if len(plain.order) < 2:
            if self.shape != self.source:
                yield "reshape", self.shape, {"to": self.shape}
        elif axes is not None:
            yield "permute", self.shape, {"order": axes}
        else:
            if plain.factors != self.source:
                yield "reshape", plain.factors, {"to": plain.factors}
            split = tuple(plain.factors[k] for k in plain.order)
            yield "permute", split, {"order": plain.order}
            if split != self.shape:
                yield "reshape", self.shape, {"to": self.shape}

    def _cut(self, shape: Shape) -> Moves | None:
        """Split factors so that the axes of another shape are made of whole ones."""
        pieces: dict[int, list[int]] = {k: [] for k in self.order}
        wanted = [n for n in shape if n != 1]
        for k in self.order:
            left = self.factors[k]
            while left > 1:
                part = math.gcd(left, wanted[0])
                if part not in (left, wanted[0]):
                    return None
                pieces[k].append(part)
                left //= part
                wanted[0] //= part
                if wanted[0] == 1:
                    wanted.pop(0)
        places = {k: sum(len(pieces[j]) for j in range(k)) for k in self.order}
        return Moves(
            self.source,
            tuple(part for k in range(len(self.factors)) for part in pieces[k]),
            tuple(places[k] + n for k in self.order for n in range(len(pieces[k]))),
            shape,
        )

    def _simplest(self) -> Moves:
        """Join the factors that stand side by side before and behind."""
        joined: dict[int, int] = {}
        last = None
        for k in self.order:
            if last is not None and k == last[1] + 1:
                joined[last[0]] *= self.factors[k]
                last = last[0], k
            else:
                joined[k] = self.factors[k]
                last = k, k
        names = {k: n for n, k in enumerate(sorted(joined))}
        return Moves(
            self.source, tuple(joined[k] for k in sorted(joined)),
            tuple(names[k] for k in joined), self.shape,
        )  # fmt: skip

    def _of_axes(self) -> Shape | None:
        """The same as an order of the axes of the value, if it is one."""
        if sorted(self.source) != sorted(self.shape):
            return None
        moved = iter(self._whole_axes())
        ones = (axis for axis, n in enumerate(self.source) if n == 1)
        order = [next(ones) if size == 1 else next(moved, -1) for size in self.shape]
        fits = all(axis >= 0 and self.source[axis] == n for axis, n in zip(order, self.shape,
                                                                       strict=True))  # fmt: skip
        return tuple(order) if fits else None

    def _whole_axes(self) -> list[int]:
        """The axes of the value in the order of their factors, if those of each stay together."""
        groups = _grouped(range(len(self.factors)), self.factors, self.source)
        first = {group[0]: (axis, group) for axis, group in enumerate(groups) if group}
        found: list[int] = []
        at = 0
        while at < len(self.order):
            axis, group = first.get(self.order[at], (-1, []))
            if not group or list(self.order[at : at + len(group)]) != group:
                return []
            found.append(axis)
            at += len(group)
        return found


def _grouped(order: Sequence[int], factors: Shape, shape: Shape) -> list[list[int]]:
    """The factors that each axis is made of, of those that stand in an order."""
    rest, groups = iter(order), []
    for size in shape:
        group: list[int] = []
        while math.prod(factors[k] for k in group) < size:
            group.append(next(rest))
        groups.append(group)
    return groups
