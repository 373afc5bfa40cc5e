r"""The shape of a convolution on integer offsets, and when two of them combine exactly.

A convolution is described without its numbers: channels, groups, the integer offsets of its
taps per dimension, its stride, and its *extent* :math:`e`, which fixes the output size.

.. math::

    y[o, p] = \sum_{i, t} K[o, i, t]\, x[i, s p + t] + b[o], \qquad
    0 \le p < m = \lfloor (n + e) / s \rfloor + 1

with ``x`` zero outside ``0 <= position < n``. A framework convolution with padding ``(lo, hi)``,
dilation ``d`` and kernel size ``k`` has the offsets ``-lo, d - lo, ..., d(k-1) - lo`` and the
extent ``lo + hi - d(k-1) - 1``. "A 1x1 is a 3x3 that is zero but at its centre" (RepVGG,
arXiv 2101.03697, section 3.3) is then no special case, and its two conditions, equal stride and a
padding that lines the taps up, are what :func:`parallel` checks.

This module holds every compatibility check of the package; nothing here touches a tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from reparam.errors import InexactError
from reparam.reasons import Why

Offsets = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution without its numbers.

    Attributes:
        in_channels: Number of input channels ``I``.
        out_channels: Number of output channels ``O``.
        groups: Number of channel groups; divides ``I`` and ``O``.
        offsets: Per spatial dimension the sorted integer offsets of the taps. The taps are the
            grid of these; no dimension at all describes a linear layer.
        stride: Per dimension the distance of neighbouring output positions in the input.
        extent: Per dimension ``e``: an input of size ``n`` gives ``(n + e) // stride + 1`` outputs.
        bias: Whether a constant is added to every output channel.

    Raises:
        InexactError: The fields contradict one another.

    """

    in_channels: int
    out_channels: int
    groups: int = 1
    offsets: Offsets = ()
    stride: tuple[int, ...] = ()
    extent: tuple[int, ...] = ()
    bias: bool = False

    def __post_init__(self) -> None:
        """Refuse fields that contradict one another."""
        if not len(self.offsets) == len(self.stride) == len(self.extent):
            raise InexactError(
                f"offsets, stride and extent need one entry per dimension; got "
                f"{len(self.offsets)}, {len(self.stride)} and {len(self.extent)}"
            )
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise InexactError(
                f"groups={self.groups} must divide the {self.in_channels} input and the "
                f"{self.out_channels} output channels"
            )
        if any(not taps or list(taps) != sorted(set(taps)) for taps in self.offsets):
            raise InexactError(
                f"offsets must be sorted, distinct and not empty; got {self.offsets}"
            )

    @classmethod
    def pointwise(
        cls, in_channels: int, out_channels: int, *, dims: int, groups: int = 1, bias: bool = False
    ) -> Geometry:
        """Describe a 1x1 convolution (or, with ``dims=0``, a linear layer)."""
        return cls(
            in_channels,
            out_channels,
            groups,
            offsets=((0,),) * dims,
            stride=(1,) * dims,
            extent=(-1,) * dims,
            bias=bias,
        )

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.offsets)

    @property
    def taps(self) -> int:
        """Number of taps of the kernel: the product over the dimensions."""
        return math.prod(len(taps) for taps in self.offsets)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape ``(O, I / groups, taps per dimension...)`` of the kernel tensor."""
        support = tuple(len(taps) for taps in self.offsets)
        return (self.out_channels, self.in_channels // self.groups, *support)

    @property
    def weights(self) -> int:
        """Numbers stored in the kernel, which is also the multiply-adds per output position."""
        return math.prod(self.kernel_shape)

    @property
    def parameters(self) -> int:
        """Numbers stored in kernel and bias."""
        return self.weights + (self.out_channels if self.bias else 0)

    @property
    def is_pointwise(self) -> bool:
        """Whether the only tap is the position itself, at stride 1 and equal size."""
        dims = len(self.offsets)
        where = (self.offsets, self.stride, self.extent)
        return where == (((0,),) * dims, (1,) * dims, (-1,) * dims)

    @property
    def is_diagonal(self) -> bool:
        """Whether every output channel is a multiple of the same input channel (BN, identity)."""
        return self.groups == self.in_channels == self.out_channels and self.is_pointwise

    def padding(self) -> tuple[tuple[int, int], ...]:
        """Zeros read before and after the input, per dimension (negative: input never read)."""
        return tuple(
            (-taps[0], extent + 1 + taps[-1])
            for taps, extent in zip(self.offsets, self.extent, strict=True)
        )

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial output size for a spatial input size."""
        return tuple(
            (n + extent) // step + 1
            for n, extent, step in zip(size, self.extent, self.stride, strict=True)
        )

    def reach(self, size: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Zeros read before and after an input of a size, per dimension; none are negative."""
        return tuple(
            (max(0, -taps[0]), max(0, step * (m - 1) + taps[-1] - (n - 1)))
            for taps, step, n, m in zip(
                self.offsets, self.stride, size, self.output_size(size), strict=True
            )
        )

    def windows(self, size: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """For every tap the places that all outputs read of an input padded by its ``reach``."""
        lows, counts = [low for low, _ in self.reach(size)], self.output_size(size)
        for tap in itertools.product(*self.offsets):
            yield tuple(
                slice(low + t, low + t + step * (m - 1) + 1, step)
                for low, t, step, m in zip(lows, tap, self.stride, counts, strict=True)
            )

    def places_in(self, outer: Geometry) -> tuple[slice, ...] | None:
        """Where its taps are among those of another; None where no slice says it."""
        return _places_in(self, outer)

    def in_dims(self, dims: int) -> Geometry:
        """The same pointwise map over another number of spatial dimensions.

        Raises:
            InexactError: The map is not pointwise and has another number of dimensions.

        """
        return self if dims == self.dims else _pointwise_in(self, dims)

    def __str__(self) -> str:
        """Describe the operator in the field's terms, such as ``3x3 conv 64->128, stride 2``."""
        channels = f"{self.in_channels}->{self.out_channels}"
        if self.dims == 0:
            return f"linear {channels}"
        size = "x".join(str(len(taps)) for taps in self.offsets)
        parts = [f"{size} conv {channels}"]
        if any(step != 1 for step in self.stride):
            parts.append(f"stride {_per_dim(self.stride)}")
        if any(pair != (0, 0) for pair in self.padding()):
            parts.append(f"padding {_per_dim(self.padding())}")
        if self.groups != 1:
            parts.append(
                "depthwise" if self.groups == self.in_channels else f"{self.groups} groups"
            )
        return ", ".join(parts)


# Geometries are values and there are few of them: a large layer is computed slice by slice, and
# every slice but the last asks the same questions.
_remember = lru_cache(maxsize=4096)


@_remember
def _pointwise_in(geometry: Geometry, dims: int) -> Geometry:
    if not geometry.is_pointwise:
        raise InexactError(f"{geometry} acts on {geometry.dims} spatial dimensions, not on {dims}")
    return replace(geometry, offsets=((0,),) * dims, stride=(1,) * dims, extent=(-1,) * dims)


@_remember
def _places_in(inner: Geometry, outer: Geometry) -> tuple[slice, ...] | None:
    found = []
    for part, taps in zip(inner.offsets, outer.offsets, strict=True):
        at = [taps.index(tap) for tap in part]
        step = at[1] - at[0] if len(at) > 1 else 1
        if at != list(range(at[0], at[-1] + 1, step)):
            return None
        found.append(slice(at[0], at[-1] + 1, step))
    return tuple(found)


@_remember
def parallel(first: Geometry, second: Geometry) -> Geometry:
    """Describe ``first(x) + second(x)``: the union of the offsets, kernels added.

    Raises:
        InexactError: The two do not map equal inputs to equal outputs, position by position:
            another number of channels or dimensions, another stride, or another extent (the
            paddings do not line the taps up).

    """
    for name in ("in_channels", "out_channels", "dims", "stride", "extent"):
        left, right = getattr(first, name), getattr(second, name)
        if left != right:
            what, hint = _PARALLEL[name]
            raise InexactError(
                Why.BRANCHES_DIFFER(
                    what=what,
                    left=str(left),
                    first=str(first),
                    right=str(right),
                    second=str(second),
                    hint=hint,
                )
            )
    return replace(
        first,
        groups=math.gcd(first.groups, second.groups),
        offsets=tuple(
            tuple(sorted({*left, *right}))
            for left, right in zip(first.offsets, second.offsets, strict=True)
        ),
        bias=first.bias or second.bias,
    )


_PARALLEL = {
    "in_channels": ("input channels", ""),
    "out_channels": ("output channels", ""),
    "dims": ("spatial dimensions", ""),
    "stride": ("stride", ""),
    "extent": (
        "output extent",
        "; the sizes of their outputs differ, so the paddings do not line the taps up",
    ),
}


@_remember
def compose(outer: Geometry, inner: Geometry) -> Geometry:
    r"""Describe ``outer(inner(x))``: offsets ``s_inner * t_outer + t_inner``, strides multiplied.

    Exact without further ado where ``outer`` reads only positions that ``inner`` computes. Where
    it reads padding, the composite would see ``inner`` evaluated *outside* of its output, so that
    value must be zero there: no bias, and no tap of ``inner`` that still meets the input.

    Raises:
        InexactError: Channels or dimensions do not match, a bias of ``inner`` would be seen
            through the zero padding of ``outer``, or ``inner`` is not zero in that padding (a
            padded second kernel).

    """
    if outer.in_channels != inner.out_channels:
        raise InexactError(
            Why.CHANNELS_DIFFER(
                expected=outer.in_channels,
                outer=str(outer),
                given=inner.out_channels,
                inner=str(inner),
            )
        )
    if outer.dims != inner.dims:
        raise InexactError(
            Why.DIMENSIONS_DIFFER(outer=f"{outer.dims} ({outer})", inner=f"{inner.dims} ({inner})")
        )
    for dim in range(outer.dims):
        _check_padding_reads(outer, inner, dim)
    return Geometry(
        inner.in_channels,
        outer.out_channels,
        math.gcd(outer.groups, inner.groups),
        offsets=tuple(
            tuple(sorted({step * t_outer + t_inner for t_outer in far for t_inner in near}))
            for far, near, step in zip(outer.offsets, inner.offsets, inner.stride, strict=True)
        ),
        stride=tuple(a * b for a, b in zip(outer.stride, inner.stride, strict=True)),
        extent=tuple(
            e_inner + step * (1 + e_outer)
            for e_outer, e_inner, step in zip(outer.extent, inner.extent, inner.stride, strict=True)
        ),
        bias=outer.bias or inner.bias,
    )


def _check_padding_reads(outer: Geometry, inner: Geometry, dim: int) -> None:
    """Raise unless what ``outer`` reads outside of ``inner``'s output is zero there anyway."""
    low, high = outer.padding()[dim]
    if low <= 0 and high <= 0:
        return
    if inner.bias:
        raise InexactError(Why.BIAS_THROUGH_PADDING(outer=str(outer), inner=str(inner)))
    taps, step, extent = inner.offsets[dim], inner.stride[dim], inner.extent[dim]
    # The nearest virtual outputs are -1 and m; m * step is at least n + extent + 1.
    meets_low = low > 0 and taps[-1] > step - 1
    meets_high = high > 0 and extent + 1 + taps[0] < 0
    if meets_low or meets_high:
        raise InexactError(Why.PADDED_SECOND_KERNEL(outer=str(outer), inner=str(inner)))


def _per_dim(values: tuple[object, ...]) -> str:
    """Write one value where all dimensions agree, else all of them."""
    flat = [v[0] if isinstance(v, tuple) and v[0] == v[1] else v for v in values]
    return str(flat[0]) if len(set(flat)) == 1 else "x".join(map(str, flat))
