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
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import AffineConv, Geometry, compose, layer_arguments, lower
from reparam.errors import InexactError

_ALL = slice(None)


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


@dataclass(frozen=True, eq=False)
class Map:
    """A linear operator without a bias, as its stored numbers and what they are multiplied by.

    Most weights are only ever scaled and compared, so they are neither copied nor widened before.

    Attributes:
        geometry: Channels, groups, offsets, stride and extent.
        kernel: Numbers, in the type that they are stored in, in the shape that this needs.
        rows: What the row of each output channel is multiplied by, in float64; None for ones.
        uncancelled: Sizes of the numbers of the kernel, as in :class:`Sized`.

    """

    geometry: Geometry
    kernel: Tensor
    rows: Tensor | None = None
    uncancelled: Tensor | None = None

    @classmethod
    def of(cls, op: AffineConv) -> Map:
        """Take an operator of stored numbers."""
        return cls(replace(op.geometry, bias=False), op.kernel)

    @classmethod
    def diagonal(cls, numbers: Sized) -> Map:
        """One factor for each channel."""
        channels = numbers.value.numel()
        geometry = Geometry.pointwise(channels, channels, dims=0, groups=channels)
        column = numbers.each(lambda each: each.reshape(channels, 1))
        return cls(geometry, column.value, None, column.uncancelled)

    @cached_property
    def value(self) -> AffineConv:
        """The operator."""
        return AffineConv(self.geometry, self.numbers())

    @cached_property
    def size(self) -> AffineConv:
        """The operator of the sizes."""
        return AffineConv(self.geometry, self.sizes())

    def numbers(self, chosen: slice = _ALL) -> Tensor:
        """The numbers of some rows, in float64."""
        return self._scaled(self.kernel[chosen].to(torch.float64), self.rows, chosen)

    def sizes(self, chosen: slice = _ALL) -> Tensor:
        """Their sizes."""
        if self.uncancelled is None:
            return self.numbers(chosen).abs()
        rows = None if self.rows is None else self.rows.abs()
        return self._scaled(self.uncancelled[chosen], rows, chosen)

    def _scaled(self, numbers: Tensor, rows: Tensor | None, chosen: slice) -> Tensor:
        if rows is None:
            return numbers
        return numbers * rows[chosen].reshape(-1, *(1,) * (numbers.dim() - 1))

    @property
    def largest(self) -> Tensor:
        """The largest absolute number of each row."""
        found = self.kernel.flatten(1).abs().amax(1).to(torch.float64)
        return found if self.rows is None else found * self.rows.abs()

    def is_same(self, other: Map) -> bool:
        """Whether both are the same stored numbers, as they are."""
        known = (self.rows, self.uncancelled, other.rows, other.uncancelled)
        alike = self.geometry == other.geometry and self.kernel.dtype is other.kernel.dtype
        return alike and all(x is None for x in known) and torch.equal(self.kernel, other.kernel)

    def in_dims(self, dims: int) -> Map:
        """The same pointwise operator over another number of spatial dimensions."""
        if dims == self.geometry.dims:
            return self
        geometry = self.geometry.in_dims(dims)
        shape, own = geometry.kernel_shape, self.uncancelled
        sizes = None if own is None else own.reshape(shape)
        return Map(geometry, self.kernel.reshape(shape), self.rows, sizes)

    def __add__(self, other: Map) -> Map:
        dims = max(self.geometry.dims, other.geometry.dims)
        first, second = self.in_dims(dims), other.in_dims(dims)
        total = first.value + second.value
        return Map(total.geometry, total.kernel, None, (first.size + second.size).kernel)

    def __matmul__(self, inner: Map) -> Map:
        dims = max(self.geometry.dims, inner.geometry.dims)
        first, second = self.in_dims(dims), inner.in_dims(dims)
        if first.geometry.is_diagonal and first.uncancelled is None:
            return second.by_rows(first.numbers().flatten())
        plain = self.uncancelled is None and inner.uncancelled is None
        plain = plain and inner.geometry.is_diagonal
        both = first.value @ second.value
        return Map(both.geometry, both.kernel, None,
                   None if plain else (first.size @ second.size).kernel)  # fmt: skip

    def by_rows(self, factors: Tensor) -> Map:
        """Multiply the row of each output channel."""
        return replace(self, rows=factors if self.rows is None else factors * self.rows)

    def times(self, factor: Sized) -> Map:
        """Multiply by one number."""
        if factor.uncancelled is None and factor.value.item() == 1.0:
            return self
        scaled = self.by_rows(factor.value.expand(self.geometry.out_channels))
        if factor.uncancelled is None:
            return scaled
        return Map(self.geometry, scaled.numbers(), None, self.sizes() * factor.size.item())

    def of_constant(self, constant: Sized, spatial: Sequence[int]) -> Sized:
        """Apply to a constant input: one number for each channel, or one for each position too.

        Where zero padding is read, the result has a number for each position.
        """
        by = self.geometry
        if constant.value.dim() < 2:
            wide = constant.spread(by.in_channels)
            padded = any(low > 0 or high > 0 for low, high in by.padding())
            seen = [_seen(by, dim, n) for dim, n in enumerate(spatial)] if padded else None
            kernel = self.kernel.to(torch.float64)
            sizes = kernel.abs() if self.uncancelled is None else self.uncancelled
            value = _of_constant(kernel, wide.value, by.groups, seen)
            size = _of_constant(sizes, wide.size, by.groups, seen)
            rows = None if self.rows is None else self.rows.abs()
            return Sized(self._scaled(value, self.rows, _ALL), self._scaled(size, rows, _ALL))
        shape = (by.in_channels, *spatial)
        wide = constant.over(len(shape))
        own = Map(by, self.sizes())
        found = (
            op.applied(numbers.expand(shape)[None])[0]
            for op, numbers in ((self, wide.value), (own, wide.size))
        )
        return Sized(*found)

    def applied(self, x: Tensor, axis: int = 1) -> Tensor:
        """Apply to a value, in its type; its channels are axis 1, unless this is pointwise."""
        by = self.geometry
        if by.is_diagonal:
            return x * self.numbers().to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1 - axis))
        if by.is_pointwise:
            kernel = self.kernel if by.groups == 1 else self.value.regroup(1).kernel
            result = F.linear(x.movedim(axis, -1), kernel.to(x.dtype).flatten(1)).movedim(-1, axis)
            scaled = None if by.groups > 1 else self.rows
        else:
            arguments, full = layer_arguments(by)
            fits = full == by
            weight = self.kernel if fits else lower(self.value)[1]
            result, scaled = arguments(x, weight.to(x.dtype), None), self.rows if fits else None
        if scaled is None:
            return result
        return result * scaled.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1 - axis))


def _of_constant(
    kernel: Tensor, inputs: Tensor, groups: int, seen: Sequence[Tensor] | None
) -> Tensor:
    """What a kernel makes of what is the same everywhere, but zero outside of where it is seen."""
    flat = kernel.flatten(2) if kernel.dim() > 2 else kernel[..., None]
    by_group = flat.unflatten(0, (groups, -1))
    found = torch.einsum("goit,gi->got", by_group, inputs.unflatten(0, (groups, -1))).flatten(0, 1)
    if seen is None:
        return found.sum(1)
    found = found.reshape(len(kernel), *kernel.shape[2:])
    for taps in seen:  # each dimension goes to the end
        found = torch.tensordot(found, taps, ([1], [1]))
    return found


def _seen(geometry: Geometry, dim: int, size: int) -> Tensor:
    """For each output position and tap, whether the tap reads the input there."""
    places = (size + geometry.extent[dim]) // geometry.stride[dim] + 1
    read = geometry.stride[dim] * torch.arange(places)[:, None]
    read = read + torch.tensor(geometry.offsets[dim])
    return ((read >= 0) & (read < size)).to(torch.float64)


def after(outer: Geometry, inner: Geometry) -> Geometry:
    """The geometry of a map after another; InexactError where there is none."""
    dims = max(outer.dims, inner.dims)
    return compose(outer.in_dims(dims), inner.in_dims(dims))


def as_map(m: Map | Sized, channels: int | None) -> Map:
    """A factor as a map of channels; a map as it is."""
    if isinstance(m, Map):
        return m
    assert channels is not None  # noqa: S101 (there is an axis where a map stands beside)
    return Map.diagonal(m.spread(channels))


def sum_of(left: Map | Sized, right: Map | Sized, channels: int | None) -> Map | Sized | None:
    """Two maps of one atom as one; None where that is not exact."""
    if isinstance(left, Sized) and isinstance(right, Sized):
        return left + right
    try:
        return as_map(left, channels) + as_map(right, channels)
    except InexactError:
        return None


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
