r"""A network in normal form: affine maps between atoms, and the operations that make the atoms.

Every value of a network is a :class:`Form`, an affine map of *atoms*,

.. math:: y = \sum_k A_k\, a_k + b,

and an atom is an input, a constant, what an operation that is not affine returns, or a value at
which composing has to stop (:class:`Cut`). Each number is kept with its *size*: what it would be
if nothing in its computation cancelled. Rounding of stored weights moves a number by a small
multiple of its size times the unit of rounding, whatever way it was folded.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.algebra import AffineConv, scale

__all__ = ["Atom", "Constant", "Cut", "Form", "Input", "Map", "Operation", "Sized"]


@dataclass(frozen=True, eq=False, slots=True)
class Sized:
    """Numbers and their sizes: float64, of one shape; of no dimension where all are the same."""

    value: Tensor
    size: Tensor

    @classmethod
    def of(cls, value: Tensor | float) -> Sized:
        """Take stored numbers: as large as they are."""
        exact = torch.as_tensor(value, dtype=torch.float64)
        return cls(exact, exact.abs())

    def __add__(self, other: Sized) -> Sized:
        return Sized(self.value + other.value, self.size + other.size)

    def __mul__(self, other: Sized) -> Sized:
        return Sized(self.value * other.value, self.size * other.size)


@dataclass(frozen=True, eq=False, slots=True)
class Map:
    """A linear operator with the sizes of its numbers; both without a bias."""

    value: AffineConv
    size: AffineConv

    @classmethod
    def of(cls, op: AffineConv) -> Map:
        """Take an operator of stored numbers."""
        return cls(AffineConv(op.geometry, op.kernel), AffineConv(op.geometry, op.kernel.abs()))

    @classmethod
    def diagonal(cls, numbers: Sized) -> Map:
        """One factor for each channel."""
        return cls(scale(numbers.value), scale(numbers.size))

    def in_dims(self, dims: int) -> Map:
        """The same pointwise operator over another number of spatial dimensions."""
        return Map(self.value.in_dims(dims), self.size.in_dims(dims))

    def __add__(self, other: Map) -> Map:
        dims = max(self.value.geometry.dims, other.value.geometry.dims)
        first, second = self.in_dims(dims), other.in_dims(dims)
        return Map(first.value + second.value, first.size + second.size)

    def __matmul__(self, inner: Map) -> Map:
        dims = max(self.value.geometry.dims, inner.value.geometry.dims)
        first, second = self.in_dims(dims), inner.in_dims(dims)
        return Map(first.value @ second.value, first.size @ second.size)

    def times(self, factor: Sized) -> Map:
        """Multiply by one number."""
        return Map(self.value * factor.value.item(), self.size * factor.size.item())

    def of_constant(self, constant: Sized) -> Sized:
        """Apply to an input that is one constant for each channel; InexactError at zero padding."""
        channels = self.value.geometry.in_channels
        value, size = (
            op @ scale(torch.zeros(channels), numbers.expand(channels)).in_dims(op.geometry.dims)
            for op, numbers in ((self.value, constant.value), (self.size, constant.size))
        )
        assert value.bias is not None  # noqa: S101 (the constant is the bias)
        assert size.bias is not None  # noqa: S101
        return Sized(value.bias, size.bias)


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
        bias: One number for each element of ``axis``, or one for all.
        where: Names of the operations that went into the maps, first to last.

    """

    shape: tuple[int, ...]
    axis: int | None
    terms: tuple[tuple[Atom, Map | Sized], ...]
    bias: Sized | None
    where: tuple[str, ...] = ()

    @property
    def atom(self) -> Atom | None:
        """The atom that this form merely is, if it is one."""
        if len(self.terms) != 1 or self.bias is not None:
            return None
        ((atom, factor),) = self.terms
        plain = isinstance(factor, Sized) and factor.value.item() == 1.0
        return atom if plain else None
