"""Convolutions of small inputs in float64, with many kernels, at all positions or at some."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra.geometry import Geometry


class Positions(NamedTuple):
    """Some positions of an output.

    Attributes:
        places: Per dimension; the positions are the grid of these.
        sizes: Number of all positions there are, per dimension.

    """

    places: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]

    def check(self, sizes: Sequence[int]) -> None:
        """Hold an output to its size, of which a few positions say nothing.

        Raises:
            ValueError: It has another size.

        """
        if tuple(sizes) != self.sizes:
            raise ValueError(
                f"the output has the size {tuple(sizes)} where {self.sizes} is planned"
            )


Run = Callable[[Tensor, Tensor | None], Tensor]
"""Convolves a fixed input with a kernel ``(O, I / groups, *taps)`` and adds a bias, or none."""


def convolving(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], pads: Sequence[tuple[int, int]],
    dilation: Sequence[int], groups: int, at: Positions | None = None,
) -> Run:  # fmt: skip
    """Fix the input of a convolution, to run it with many kernels or slices of the rows of one.

    The values that the taps meet are gathered once and each kernel is one matrix product for each
    group: on an input as small as the kernel, up to ten times faster than torch in float64.

    Args:
        x: The input, ``(N, I, *positions)``.
        kernel_size: Per dimension.
        stride: Per dimension.
        pads: Zeros before and behind the input, per dimension.
        dilation: Per dimension.
        groups: Number of channel groups.
        at: The positions of the output to compute, or all of them.

    """
    sizes = [
        (low + size + high - step * (taps - 1) - 1) // every + 1
        for size, (low, high), taps, step, every in zip(
            x.shape[2:], pads, kernel_size, dilation, stride, strict=True
        )
    ]
    places: Sequence[Sequence[int]] = [range(size) for size in sizes]
    if at is not None:
        at.check(sizes)
        places = at.places
    starts = [[p * every for p in here] for here, every in zip(places, stride, strict=True)]
    if groups == x.shape[1] and at is None:
        padded = F.pad(x, flat_pads(pads))
        return partial(_tap_by_tap, _windows(padded, sizes, kernel_size, stride, dilation))
    values = x
    for dim, (first, taps, step) in enumerate(zip(starts, kernel_size, dilation, strict=True)):
        met = [start + step * tap - pads[dim][0] for start in first for tap in range(taps)]
        values = _met(values, 2 + dim, met)
    shape = [n for pair in zip(map(len, places), kernel_size, strict=True) for n in pair]
    by_tap = values.reshape(len(values), groups, -1, *shape)
    dims = range(len(places))
    order = [1, 0, *(3 + 2 * dim for dim in dims), 2, *(4 + 2 * dim for dim in dims)]
    rows = by_tap.permute(order).reshape(groups, -1, by_tap.shape[2] * math.prod(kernel_size))
    return partial(_products, rows, (len(x), *map(len, places)))


def _met(values: Tensor, dim: int, places: list[int]) -> Tensor:
    """Take positions along a dimension; zeros lie outside."""
    size = values.shape[dim]
    if places == list(range(size)):
        return values
    device = values.device
    taken = values.index_select(
        dim, torch.tensor([min(max(p, 0), size - 1) for p in places], device=device)
    )
    outside = [k for k, p in enumerate(places) if not 0 <= p < size]
    return taken.index_fill_(dim, torch.tensor(outside, device=device), 0.0) if outside else taken


def flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Write ``(low, high)`` per dimension in the order of ``torch.nn.functional.pad``."""
    return [value for pair in reversed(pads) for value in pair]


def at_positions(values: Tensor, at: Positions) -> Tensor:
    """Take some positions of ``(N, C, *positions)``."""
    at.check(values.shape[2:])
    for dim, places in enumerate(at.places):
        values = values.index_select(2 + dim, torch.tensor(places, device=values.device))
    return values


def telling_positions(sizes: Sequence[int], geometry: Geometry) -> Positions | None:
    """Positions of an output that show all there is: the interior, and each border there is.

    Positions at which the same taps lie within the input compute the same function of what they
    read. Of each run of such positions the first, the last and one between are taken.

    Returns:
        None where these are not clearly fewer than all positions.

    """
    chosen, counts = [], []
    for size, taps, step, extent in zip(
        sizes, geometry.offsets, geometry.stride, geometry.extent, strict=True
    ):
        counts.append((size + extent) // step + 1)
        met = [[0 <= step * p + tap < size for tap in taps] for p in range(counts[-1])]
        places: set[int] = set()
        for _, run in itertools.groupby(range(counts[-1]), met.__getitem__):
            alike = list(run)
            places |= {alike[0], alike[len(alike) // 2], alike[-1]}
        chosen.append(tuple(sorted(places)))
    fewer = 2 * math.prod(map(len, chosen)) < math.prod(counts)
    return Positions(tuple(chosen), tuple(counts)) if fewer else None


def _tap_by_tap(windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel by itself: every tap scales what it meets, and these add up.

    Args:
        windows: What each tap meets, ``(*taps, N, *positions, 1, C)``.
        weight: ``(C * copies, 1, *taps)``.
        bias: ``(C * copies,)``, or None.

    """
    dims, width = weight.dim() - 2, windows.shape[-1]
    scales = weight.reshape(width, -1, *weight.shape[2:]).movedim((0, 1), (-1, -2)).contiguous()
    y = windows.new_zeros(*windows.shape[dims:-2], *scales.shape[-2:])
    for met, scale in zip(_unbound(windows, dims), _unbound(scales, dims), strict=True):
        y.addcmul_(met, scale)
    y = y.movedim((-1, -2), (1, 2)).flatten(1, 2)
    return y if bias is None else y + bias.view(-1, *(1,) * dims)


def _unbound(values: Tensor, dims: int) -> list[Tensor]:
    """What lies along the first dimensions of a tensor."""
    if dims == 0:
        return [values]
    return [part for row in values.unbind() for part in _unbound(row, dims - 1)]


def _windows(
    padded: Tensor, sizes: Sequence[int], taps: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """What each tap meets of a padded input, ``(*taps, N, *positions, 1, C)``."""
    # The channels last, which are many where the positions are few.
    padded = padded.movedim(1, -1).contiguous()
    first, *steps, last = padded.stride()
    between = [step * every for step, every in zip(steps, dilation, strict=True)]
    moves = [step * every for step, every in zip(steps, stride, strict=True)]
    shape = (*taps, len(padded), *sizes, 1, padded.shape[-1])
    return padded.as_strided(shape, (*between, first, *moves, last, last))


def _products(
    rows: Tensor, size: tuple[int, ...], weight: Tensor, bias: Tensor | None
) -> Tensor:  # fmt: skip
    """Multiply kernels with ``(groups, N * positions, I / groups * taps)``."""
    groups, _, length = rows.shape
    kernels = weight.reshape(groups, -1, length)
    # One plain product is several times faster than a batch of one.
    flat = rows @ kernels.mT if groups > 1 else F.linear(rows[0], kernels[0])[None]
    y: Tensor = flat.unflatten(1, (size[0], -1)).permute(1, 0, 3, 2)
    y = y.reshape(size[0], len(weight), *size[1:])
    return y if bias is None else y + bias.view(-1, *(1,) * (len(size) - 1))
