"""Hypothesis strategies for operators, and the definition that they are judged by.

Kernels and inputs hold small whole numbers, so that float64 arithmetic is exact and the laws are
tested without a tolerance.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from hypothesis import reject
from hypothesis import strategies as st

from reparam.algebra import AffineConv, Geometry
from reparam.errors import InexactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

__all__ = [
    "after",
    "before",
    "beside",
    "by_definition",
    "defined",
    "doubled_taps",
    "groups_for",
    "inputs_for",
    "operators",
    "same_map",
    "whole_numbers",
    "with_numbers",
]

# Three dimensions take the longest and show the least that two do not.
DIMS = st.sampled_from([1, 2, 0, 2, 1, 3])
CHANNELS = st.sampled_from([2, 1, 4, 3, 6])
STRIDES = st.sampled_from([1, 1, 2, 3])


def whole_numbers(*shape: int) -> Tensor:
    """Random whole numbers from -4 to 4, in float64."""
    return torch.randint(-4, 5, shape).to(torch.float64)


def with_numbers(geometry: Geometry) -> AffineConv:
    """Give a geometry random whole numbers."""
    bias = whole_numbers(geometry.out_channels) if geometry.bias else None
    return AffineConv(geometry, whole_numbers(*geometry.kernel_shape), bias)


@st.composite
def offsets(draw: st.DrawFn) -> tuple[int, ...]:
    """Taps of one dimension: off-centre, with equal or unequal gaps, often around the centre."""
    usual = [(-1, 0, 1), (0,), (0, 1), (-2, 0, 2), (-2, -1, 0, 1, 2)]
    if draw(st.booleans()):
        return draw(st.sampled_from(usual))
    first = draw(st.integers(-3, 3))
    gaps = draw(st.lists(st.integers(1, 3), max_size=2))
    return tuple(itertools.accumulate([first, *gaps]))


def groups_for(cin: int, cout: int) -> st.SearchStrategy[int]:
    """Numbers of groups that divide both; depthwise is one where the channels are equal."""
    common = math.gcd(cin, cout)
    return st.sampled_from([1, *(g for g in range(common, 1, -1) if common % g == 0)])


@st.composite
def operators(
    draw: st.DrawFn,
    *,
    dims: int | None = None,
    cin: int | None = None,
    cout: int | None = None,
    bias: bool | None = None,
    inside: bool = False,
) -> AffineConv:
    """Draw any operator; ``inside`` asks for one that reads no padding."""
    dims = draw(DIMS) if dims is None else dims
    cin = draw(CHANNELS) if cin is None else cin
    cout = draw(st.sampled_from([cin, 2, 3, 4])) if cout is None else cout
    taps, steps, extents = [], [], []
    for _ in range(dims):
        line = draw(offsets())
        low = draw(st.integers(0, 2)) - line[0] if inside else 0
        line = tuple(t + low for t in line)
        # The zeros after the input may be fewer or more than those before it, or negative.
        high = -draw(st.integers(0, 2)) if inside else draw(st.sampled_from([-line[0], 0, 2, -1]))
        taps.append(line)
        steps.append(draw(STRIDES))
        extents.append(high - line[-1] - 1)
    geometry = Geometry(
        cin,
        cout,
        draw(groups_for(cin, cout)),
        tuple(taps),
        tuple(steps),
        tuple(extents),
        bias=draw(st.booleans()) if bias is None else bias,
    )
    return with_numbers(geometry)


@st.composite
def beside(draw: st.DrawFn, op: AffineConv) -> AffineConv:
    """Draw a branch that can be added to ``op``."""
    known = op.geometry
    geometry = Geometry(
        known.in_channels,
        known.out_channels,
        draw(groups_for(known.in_channels, known.out_channels)),
        tuple(draw(st.sampled_from([line, draw(offsets())])) for line in known.offsets),
        known.stride,
        known.extent,
        bias=draw(st.booleans()),
    )
    return with_numbers(geometry)


@st.composite
def after(draw: st.DrawFn, inner: AffineConv, *, cout: int | None = None) -> AffineConv:
    """Draw an operator that can follow ``inner``; it pads its input where that is exact."""
    dims, width = inner.geometry.dims, inner.geometry.out_channels
    padded = draw(operators(dims=dims, cin=width, cout=cout))
    if defined(lambda: padded @ inner) is not None:
        return padded
    return draw(operators(dims=dims, cin=width, cout=cout, inside=True))


@st.composite
def before(draw: st.DrawFn, outer: AffineConv) -> AffineConv:
    """Draw an operator that ``outer`` can follow."""
    geometry = outer.geometry
    inner = draw(operators(dims=geometry.dims, cout=geometry.in_channels))
    if defined(lambda: outer @ inner) is not None:
        return inner
    # Through any padding a 1x1 convolution without bias is exact.
    width = draw(CHANNELS)
    groups = draw(groups_for(width, geometry.in_channels))
    return with_numbers(
        Geometry.pointwise(width, geometry.in_channels, dims=geometry.dims, groups=groups)
    )


def defined(make: Callable[[], AffineConv]) -> AffineConv | None:
    """Return the operator, or None where the algebra refuses."""
    try:
        return make()
    except InexactError:
        return None


def inputs_for(*chain: AffineConv) -> Iterator[Tensor]:
    """Random inputs for operators that follow one another, the first given first.

    The smallest that leaves an output (where there is little but borders), and one that is larger
    by another number in each dimension, so that every remainder of a stride occurs.
    """
    geometry = chain[0].geometry
    if geometry.dims == 0:
        yield whole_numbers(2, 3, geometry.in_channels)
        return
    smallest = _smallest_size(chain)
    for most in (0, 5):
        size = (n + int(torch.randint(most + 1, ())) for n in smallest)
        yield whole_numbers(2, geometry.in_channels, *size)


def _smallest_size(chain: tuple[AffineConv, ...]) -> tuple[int, ...]:
    found = []
    for dim in range(chain[0].geometry.dims):
        for n in range(1, 200):
            size = n
            for op in chain:
                size = (size + op.geometry.extent[dim]) // op.geometry.stride[dim] + 1
                if size < 1:
                    break
            else:
                found.append(n)
                break
        else:
            reject()
    return tuple(found)


def by_definition(op: AffineConv, x: Tensor) -> Tensor:
    """``y[o, p] = sum_{i, t} K[o, i, t] x[i, s p + t] + b[o]``, number by number."""
    geometry = op.geometry
    if geometry.dims == 0:
        x, lead = x.reshape(-1, geometry.in_channels), x.shape[:-1]
        return by_definition_spatial(op, x, ()).reshape(*lead, -1)
    out = tuple(
        (n + e) // s + 1
        for n, e, s in zip(x.shape[2:], geometry.extent, geometry.stride, strict=True)
    )
    return by_definition_spatial(op, x, out)


def by_definition_spatial(op: AffineConv, x: Tensor, out: tuple[int, ...]) -> Tensor:
    """Sum over the taps at every output position, one number of ``x`` at a time."""
    geometry = op.geometry
    width = geometry.in_channels // geometry.groups
    height = geometry.out_channels // geometry.groups
    numbers, kernel = x.tolist(), op.kernel.tolist()
    bias = [0.0] * geometry.out_channels if op.bias is None else op.bias.tolist()
    y = torch.zeros(x.shape[0], geometry.out_channels, *out, dtype=torch.float64)
    taps = list(itertools.product(*(list(enumerate(line)) for line in geometry.offsets)))
    for n, o in itertools.product(range(x.shape[0]), range(geometry.out_channels)):
        for p in itertools.product(*map(range, out)):
            total = bias[o]
            for i, tap in itertools.product(range(width), taps):
                channel = (o // height) * width + i
                at = [s * q + t for s, q, (_, t) in zip(geometry.stride, p, tap, strict=True)]
                if all(0 <= a < size for a, size in zip(at, x.shape[2:], strict=True)):
                    weight = _pick(kernel[o][i], [k for k, _ in tap])
                    total += weight * _pick(numbers[n][channel], at)
            y[(n, o, *p)] = total
    return y


def _pick(nested: list | float, index: list[int]) -> float:
    for k in index:
        nested = nested[k]
    return nested


def same_map(left: AffineConv, right: AffineConv) -> bool:
    """Whether two operators are equal, number by number, on all of their taps."""
    return left.isclose(right, rtol=0.0, atol=0.0)


def doubled_taps(op: AffineConv) -> AffineConv:
    """Write the same map on more taps, the new ones zero."""
    known = op.geometry
    wider = Geometry(
        known.in_channels,
        known.out_channels,
        known.groups,
        tuple(tuple(sorted({*line, *(t + 1 for t in line)})) for line in known.offsets),
        known.stride,
        known.extent,
    )
    nothing = AffineConv(wider, torch.zeros(wider.kernel_shape, dtype=torch.float64))
    return op + nothing
