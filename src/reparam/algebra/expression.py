"""Operators that are described now and computed later, a slice of output channels at a time.

A plan is made from geometries alone. The numbers are read when the plan is applied, and for a
large kernel only a few output channels at a time, so that float64 arithmetic stays in the cache
and never needs a float64 copy of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from reparam.algebra.affine_conv import AffineConv
from reparam.algebra.builders import pad_geometry, scale, zero_pad
from reparam.algebra.geometry import Geometry, compose, parallel

Rows = tuple[int, int]
"""A half-open range of output channels."""

Loader = Callable[[Rows | None], AffineConv]


@dataclass(frozen=True, eq=False)
class Leaf:
    """One operator of the program; ``load`` reads its numbers (all, or dense rows of them)."""

    geometry: Geometry
    load: Loader

    @classmethod
    def of(cls, geometry: Geometry, make: Callable[[], AffineConv]) -> Leaf:
        """Describe an operator that is made whole, and cut to the rows that are asked for."""

        def load(rows: Rows | None) -> AffineConv:
            op = make()
            return op if rows is None else op.rows(*rows)

        return cls(geometry, load)


@dataclass(frozen=True, eq=False)
class Composition:
    """``outer(inner(x))``."""

    outer: Expression
    inner: Expression
    geometry: Geometry

    @classmethod
    def of(cls, outer: Expression, inner: Expression) -> Composition:
        """Compose, or raise InexactError where that is not exact."""
        dims = max(outer.geometry.dims, inner.geometry.dims)
        return cls(
            outer, inner, compose(outer.geometry.in_dims(dims), inner.geometry.in_dims(dims))
        )


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum of parallel branches."""

    terms: tuple[Expression, ...]
    geometry: Geometry

    @classmethod
    def of(cls, terms: tuple[Expression, ...]) -> Expression:
        """Add, or raise InexactError where that is not exact."""
        if len(terms) == 1:
            return terms[0]
        dims = max(term.geometry.dims for term in terms)
        geometry = terms[0].geometry.in_dims(dims)
        for term in terms[1:]:
            geometry = parallel(geometry, term.geometry.in_dims(dims))
        return cls(terms, geometry)


Expression = Leaf | Composition | Sum


def constant_scale(channels: int, factor: float, *, shift: float | None = None) -> Leaf:
    """Describe ``factor * x + shift`` with the same numbers for every channel."""
    geometry = Geometry.pointwise(
        channels, channels, dims=0, groups=channels, bias=shift is not None
    )

    def make() -> AffineConv:
        factors = torch.full((channels,), factor, dtype=torch.float64)
        return scale(factors, None if shift is None else torch.full_like(factors, shift))

    return Leaf.of(geometry, make)


def pad_leaf(count: int, pads: tuple[tuple[int, int], ...]) -> Leaf:
    """Describe zero padding of ``count`` channels; negative numbers crop."""
    return Leaf.of(pad_geometry(count, pads), lambda: zero_pad(count, pads))


def picked_leaf(count: int, width: int, taken: Sequence[int], dims: int) -> Leaf:
    """Describe the choice of some of the ``width`` channels that belong to each of ``count``."""
    geometry = Geometry.pointwise(count * width, count * len(taken), dims=dims, groups=count)

    def make() -> AffineConv:
        kernel = torch.zeros(geometry.kernel_shape, dtype=torch.float64)
        kernel.view(count, len(taken), width)[:, range(len(taken)), list(taken)] = 1
        return AffineConv(geometry, kernel)

    return Leaf.of(geometry, make)


def prepared(expression: Expression) -> Expression:
    """Load the per-channel operators of an expression once, for evaluating it slice by slice."""
    match expression:
        case Leaf(geometry=geometry):
            if not geometry.is_diagonal:
                return expression
            op = expression.load(None)
            return Leaf(geometry, lambda rows: op if rows is None else op.rows(*rows))
        case Sum(terms=terms, geometry=geometry):
            return Sum(tuple(prepared(term) for term in terms), geometry)
        case Composition(outer=outer, inner=inner, geometry=geometry):
            return Composition(prepared(outer), prepared(inner), geometry)


def evaluate(expression: Expression, rows: Rows | None = None) -> AffineConv:
    """Compute an expression: whole, or restricted to a range of output channels (then dense)."""
    match expression:
        case Leaf():
            return expression.load(rows)
        case Sum(terms=terms, geometry=geometry):
            # The largest first: the others are then added into it instead of into a copy.
            ordered = sorted(terms, key=lambda term: -term.geometry.weights)
            total = evaluate(ordered[0], rows).in_dims(geometry.dims)
            fresh = not isinstance(ordered[0], Leaf) and not torch.is_grad_enabled()
            for term in ordered[1:]:
                if fresh and rows is not None and term.geometry.is_diagonal:
                    total = total.absorb_channels(evaluate(term).in_dims(geometry.dims), rows)
                    continue
                branch = evaluate(term, rows).in_dims(geometry.dims)
                total = total.absorb(branch) if fresh else total + branch
            return total
        case Composition(outer=outer, inner=inner, geometry=geometry):
            dims = geometry.dims
            if rows is not None and outer.geometry.is_diagonal:
                return channels(evaluate(outer), rows).in_dims(dims) @ evaluate(
                    inner, rows
                ).in_dims(dims)
            return evaluate(outer, rows).in_dims(dims) @ evaluate(inner).in_dims(dims)


def channels(op: AffineConv, rows: Rows) -> AffineConv:
    """Restrict a diagonal operator to a range of its channels, input and output alike."""
    start, stop = rows
    count = stop - start
    geometry = Geometry.pointwise(
        count, count, dims=op.geometry.dims, groups=count, bias=op.geometry.bias
    )
    bias = None if op.bias is None else op.bias[start:stop]
    return AffineConv(geometry, op.kernel[start:stop], bias)


def shift_before(scale_leaf: Leaf, shift_leaf: Leaf) -> Leaf:
    r"""Describe what is added before a scale instead of behind: :math:`s x + b = s (x + b / s)`."""

    def make() -> AffineConv:
        factors, shift = scale_leaf.load(None).kernel.flatten(), shift_leaf.load(None).bias
        assert shift is not None  # noqa: S101 (the caller has looked)
        return scale(torch.ones_like(factors), shift / factors)

    return Leaf.of(shift_leaf.geometry, make)


def rerouted(
    leaf: Leaf, sources: Sequence[int | None], *, shift: float = 1.0, inverse: bool = False
) -> Leaf:
    r"""Describe a per-channel operator on other channels.

    Channel :math:`i` becomes :math:`s_{c(i)} x + f\, b_{c(i)}` with the numbers of channel
    :math:`c(i)` of the given operator, or stays as it is where there is none.

    Args:
        leaf: A diagonal operator.
        sources: :math:`c(i)` for each channel, or None.
        shift: :math:`f`, how often the shift is added.
        inverse: Divide by the factors, :math:`x / s_{c(i)}`, without a shift.

    """
    count, biased = len(sources), leaf.geometry.bias and shift != 0 and not inverse
    geometry = Geometry.pointwise(count, count, dims=0, groups=count, bias=biased)
    taken = torch.tensor([-1 if source is None else source for source in sources])

    def make() -> AffineConv:
        op = leaf.load(None)
        # The number behind the last channel's is what leaves a channel as it is.
        own = 1 / op.kernel if inverse else op.kernel
        factors = torch.cat([own.flatten(), own.new_ones(1)])[taken]
        if not biased:
            return scale(factors)
        assert op.bias is not None  # noqa: S101 (its geometry says so)
        return scale(factors, torch.cat([shift * op.bias, op.bias.new_zeros(1)])[taken])

    return Leaf.of(geometry, make)
