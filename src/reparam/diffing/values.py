r"""A network in normal form: affine maps between atoms, and the operations that make the atoms.

Every value of a network is a :class:`Form`, an affine map of *atoms*,

.. math:: y = \sum_k A_k\, a_k + b,

and an atom is an input, a constant, what an operation that is not affine returns, or a value at
which composing has to stop (:class:`Cut`). Each number is kept with its *size*: what it would be
if nothing in its computation cancelled. Rounding of stored weights moves a number by a small
multiple of its size times the unit of rounding, whatever way it was folded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.algebra import AffineConv, Geometry, compose, lower, scale

__all__ = [
    "Atom",
    "Constant",
    "Cut",
    "Form",
    "Input",
    "Map",
    "Operation",
    "Sized",
    "after",
    "applied",
]


@dataclass(frozen=True, eq=False, slots=True)
class Sized:
    """Numbers and their sizes: float64, of one shape; of no dimension where all are the same.

    Attributes:
        value: The numbers.
        uncancelled: Their sizes; None where nothing can have cancelled, so that they are as large
            as they are.

    """

    value: Tensor
    uncancelled: Tensor | None = None

    @classmethod
    def of(cls, value: Tensor | float) -> Sized:
        """Take stored numbers."""
        return cls(torch.as_tensor(value, dtype=torch.float64))

    @property
    def size(self) -> Tensor:
        """What each number would be if nothing in its computation cancelled."""
        return self.value.abs() if self.uncancelled is None else self.uncancelled

    def each(self, change: Callable[[Tensor], Tensor]) -> Sized:
        """Lay the numbers, and their sizes, out in another way."""
        own = self.uncancelled
        return Sized(change(self.value), None if own is None else change(own))

    def spread(self, channels: int) -> Sized:
        """One number for each channel."""
        return self.each(lambda each: each.expand(channels))

    def over(self, dims: int) -> Sized:
        """The same numbers for each position behind the channels, of which there is one so far."""
        if self.value.dim() in (0, dims):
            return self
        return self.each(lambda each: each.reshape(-1, *(1,) * (dims - 1)))

    def __add__(self, other: Sized) -> Sized:
        dims = max(self.value.dim(), other.value.dim())
        first, second = self.over(dims), other.over(dims)
        return Sized(first.value + second.value, first.size + second.size)

    def __mul__(self, other: Sized) -> Sized:
        plain = self.uncancelled is None and other.uncancelled is None
        return Sized(self.value * other.value, None if plain else self.size * other.size)


@dataclass(frozen=True, eq=False, slots=True)
class Map:
    """A linear operator without a bias, and the sizes of its numbers, as in :class:`Sized`."""

    value: AffineConv
    uncancelled: AffineConv | None = None

    @classmethod
    def of(cls, op: AffineConv) -> Map:
        """Take an operator of stored numbers."""
        return cls(AffineConv(op.geometry, op.kernel))

    @classmethod
    def diagonal(cls, numbers: Sized) -> Map:
        """One factor for each channel."""
        own = numbers.uncancelled
        return cls(scale(numbers.value), None if own is None else scale(own))

    @property
    def geometry(self) -> Geometry:
        """Channels, groups, offsets, stride and extent."""
        return self.value.geometry

    @property
    def size(self) -> AffineConv:
        """The operator of the sizes."""
        if self.uncancelled is not None:
            return self.uncancelled
        return AffineConv(self.geometry, self.value.kernel.abs())

    def in_dims(self, dims: int) -> Map:
        """The same pointwise operator over another number of spatial dimensions."""
        own = self.uncancelled
        return Map(self.value.in_dims(dims), None if own is None else own.in_dims(dims))

    def __add__(self, other: Map) -> Map:
        dims = max(self.geometry.dims, other.geometry.dims)
        first, second = self.in_dims(dims), other.in_dims(dims)
        return Map(first.value + second.value, first.size + second.size)

    def __matmul__(self, inner: Map) -> Map:
        dims = max(self.geometry.dims, inner.geometry.dims)
        first, second = self.in_dims(dims), inner.in_dims(dims)
        plain = self.uncancelled is None and inner.uncancelled is None
        plain = plain and (self.geometry.is_diagonal or inner.geometry.is_diagonal)
        return Map(first.value @ second.value, None if plain else first.size @ second.size)

    def times(self, factor: Sized) -> Map:
        """Multiply by one number."""
        if factor.uncancelled is None and factor.value.item() == 1.0:
            return self
        plain = self.uncancelled is None and factor.uncancelled is None
        size = None if plain else self.size * factor.size.item()
        return Map(self.value * factor.value.item(), size)

    def of_constant(self, constant: Sized, spatial: Sequence[int]) -> Sized:
        """Apply to a constant input: one number for each channel, or one for each position too.

        Where zero padding is read, the result has a number for each position.
        """
        padded = any(low > 0 or high > 0 for low, high in self.geometry.padding())
        if not padded and constant.value.dim() < 2:
            wide = constant.spread(self.geometry.in_channels)
            return Sized(_summed(self.value) @ wide.value, _summed(self.size) @ wide.size)
        shape = (self.geometry.in_channels, *spatial)
        wide = constant.over(len(shape))
        found = (
            applied(op, numbers.expand(shape)[None])[0]
            for op, numbers in ((self.value, wide.value), (self.size, wide.size))
        )
        return Sized(*found)


def _summed(op: AffineConv) -> Tensor:
    """The matrix that acts on what is the same everywhere."""
    return op.regroup(1).kernel.flatten(2).sum(2) if op.geometry.dims else op.regroup(1).kernel


def applied(op: AffineConv, x: Tensor, axis: int = 1) -> Tensor:
    """Apply an operator to a value whose channels are an axis: 1, unless it is pointwise."""
    if op.geometry.is_diagonal:
        return x * op.kernel.reshape(-1, *(1,) * (x.dim() - 1 - axis))
    if op.geometry.is_pointwise:
        return op.in_dims(0)(x.movedim(axis, -1)).movedim(-1, axis)
    arguments, weight, _ = lower(op)
    return arguments(x, weight, None)


def after(outer: Geometry, inner: Geometry) -> Geometry:
    """The geometry of a map after another; InexactError where there is none."""
    dims = max(outer.dims, inner.dims)
    return compose(outer.in_dims(dims), inner.in_dims(dims))


@dataclass(frozen=True, eq=False, slots=True)
class Input:
    """An input of the network, by its position."""

    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Constant:
    """Stored numbers that are no weight of an affine map, such as a positional embedding."""

    numbers: Sized
    shape: tuple[int, ...]
    where: str


@dataclass(frozen=True, eq=False, slots=True)
class Operation:
    """What a known operation that is not affine returns; ``kind`` is a key of ``KINDS``."""

    kind: str
    args: tuple[Form, ...]
    attributes: tuple[tuple[str, Hashable], ...]
    shape: tuple[int, ...]
    where: str


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """A value that is named because the map of it cannot, or should not, be composed further.

    Attributes:
        form: The value.
        priced: Whether composing would be exact, and only cost more numbers.

    """

    form: Form
    priced: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.form.shape


Atom = Input | Constant | Operation | Cut


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """An affine map of atoms.

    Attributes:
        shape: Shape of the value.
        axis: The axis that its maps act on; None where they are plain factors.
        terms: Each atom once, with its map, or with a factor.
        bias: One number for each element of ``axis``, or one for all; or, as a bias that was seen
            through padding is not the same everywhere, one for each channel and position.
        where: Names of the operations that went into the maps, first to last.

    """

    shape: tuple[int, ...]
    axis: int | None
    terms: tuple[tuple[Atom, Map | Sized], ...]
    bias: Sized | None
    where: tuple[str, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether its bias is not the same everywhere."""
        return self.bias is not None and self.bias.value.dim() > 1

    @property
    def atom(self) -> Atom | None:
        """The atom that this form merely is, if it is one."""
        if len(self.terms) != 1 or self.bias is not None:
            return None
        ((atom, factor),) = self.terms
        plain = isinstance(factor, Sized) and factor.value.item() == 1.0
        return atom if plain else None
