r"""Mean and covariance of the patches of a batch, and their gradients.

A branch that is linear in the patch :math:`p` has the batch mean :math:`w^\top\mu` and the batch
variance :math:`w^\top\Sigma\,w`, with

.. math:: \mu = \tfrac1n \sum p, \qquad \Sigma = \tfrac1n \sum (p - \mu)(p - \mu)^\top

over the ``n`` positions of the batch that the branch computes. Patches are those of one group of
channels, ordered by channel, then by tap, like the rows of a kernel ``(O, I / groups, *taps)``.

Three ways lead there. Single taps need one matrix product. Depthwise patches at stride 1 are
Toeplitz but for borders (:mod:`reparam.branching.online.toeplitz`). All others are gathered. Each
keeps the input for the backward pass and nothing of its size besides.

A gradient of the moments is one map of the patches: with :math:`S = d\Sigma + d\Sigma^\top`, a
patch gets :math:`(S\,p + d\mu - S\,\mu) / n`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import Geometry, flat_pads
from reparam.branching.online.toeplitz import Toeplitz

__all__ = ["Way", "is_single_tap", "is_toeplitz", "way_of"]

_MOST_TAPS = 49
"""Taps from which on the fixed maps of Toeplitz patches grow large."""


class Way(Protocol):
    """A way to the moments of patches, and back."""

    @staticmethod
    def moments(x: Tensor, patch: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mean ``(groups, D)`` and the covariance ``(groups, D, D)`` in a type."""
        ...

    @staticmethod
    def gradient(
        x: Tensor, patch: Geometry, matrix: Tensor, shift: Tensor, before: Tensor | None
    ) -> Tensor:
        """What the map ``matrix @ p + shift`` of all patches gives where they were read.

        Args:
            x: The input.
            patch: The patches.
            matrix: Shape ``(groups, D, D)``, symmetric.
            shift: Shape ``(groups, D)``.
            before: What it is added to, which stays as it is; None for nothing.

        """
        ...


def way_of(patch: Geometry) -> type[Way]:
    """Choose the way to the moments of the patches that an operator reads."""
    if is_single_tap(patch):
        return _Single
    return _Depthwise if is_toeplitz(patch) else _Gathered


def is_single_tap(patch: Geometry) -> bool:
    """Whether every patch is one position, and each position of the input is one patch."""
    return patch.is_pointwise


def is_toeplitz(patch: Geometry) -> bool:
    """Whether the products of taps are an autocorrelation: depthwise, dense taps, stride 1."""
    return (
        patch.dims in {1, 2}
        and patch.groups == patch.in_channels
        and patch.taps <= _MOST_TAPS
        and all(step == 1 for step in patch.stride)
        and all(
            taps == tuple(range(taps[0], taps[-1] + 1)) and taps[0] <= 0 <= taps[-1]
            for taps in patch.offsets
        )
    )


class _Single:
    """Single taps: one product of the centred input with itself."""

    @staticmethod
    def moments(x: Tensor, patch: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rows = x.movedim(1, 0).unflatten(0, (patch.groups, -1))
        positions = tuple(range(2, rows.dim()))
        mean = rows.mean(positions, dtype=dtype)
        # Into one block of memory, so that one product takes all images.
        centred = rows.new_empty(rows.shape, dtype=dtype)
        torch.sub(rows, mean[(..., *(None,) * len(positions))], out=centred)
        flat = centred.flatten(2)
        return mean, (flat @ flat.mT).div_(flat.shape[2])

    @staticmethod
    def gradient(
        x: Tensor, patch: Geometry, matrix: Tensor, shift: Tensor, before: Tensor | None
    ) -> Tensor:
        del patch
        groups, width = shift.shape
        total = torch.zeros_like(x) if before is None else before
        # Images as batches of a product for each group; without positions all images are one.
        images = x.t().unsqueeze(0) if x.dim() == 2 else x.flatten(2)
        sums = total.t().unsqueeze(0) if x.dim() == 2 else total.flatten(2)
        count, _, positions = images.shape
        factor = matrix.to(x.dtype).expand(count, groups, width, width).reshape(-1, width, width)
        sums = torch.baddbmm(
            sums.reshape(-1, width, positions), factor, images.reshape(-1, width, positions)
        )
        sums = sums.view(images.shape).add_(shift.to(x.dtype).view(-1, 1))
        return sums[0].t() if x.dim() == 2 else sums.view(x.shape)


class _Depthwise:
    """Depthwise patches at stride 1, by the autocorrelation of the image."""

    @staticmethod
    def moments(x: Tensor, patch: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return Toeplitz.of(patch, x).moments(x, dtype)

    @staticmethod
    def gradient(
        x: Tensor, patch: Geometry, matrix: Tensor, shift: Tensor, before: Tensor | None
    ) -> Tensor:
        toeplitz = Toeplitz.of(patch, x)
        part = toeplitz.gradient(x, matrix.to(x.dtype), shift.to(x.dtype))
        return part if before is None else part.add_(before)


class _Gathered:
    """Any patches, written out."""

    @staticmethod
    def moments(x: Tensor, patch: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rows = _gather(x, patch, dtype)
        mean = rows.mean(2)
        rows -= mean.unsqueeze(2)
        return mean, (rows @ rows.mT).div_(rows.shape[2])

    @staticmethod
    def gradient(
        x: Tensor, patch: Geometry, matrix: Tensor, shift: Tensor, before: Tensor | None
    ) -> Tensor:
        rows = _gather(x, patch, x.dtype)
        rows = torch.baddbmm(shift.to(x.dtype).unsqueeze(2), matrix.to(x.dtype), rows)
        part = _scatter(rows, x, patch)
        return part if before is None else part.add_(before)


def _gather(x: Tensor, patch: Geometry, dtype: torch.dtype) -> Tensor:
    """Write the patches out: ``(groups, D, n)``."""
    size = patch.output_size(tuple(x.shape[2:]))
    padded = F.pad(x, flat_pads(_reach(patch, x)))
    rows = x.new_empty(x.shape[1], patch.taps, x.shape[0], *size, dtype=dtype)
    for tap, window in enumerate(_windows(patch, x)):
        rows[:, tap] = padded[window].transpose(0, 1)
    return rows.view(patch.groups, -1, rows[0, 0].numel())


def _scatter(rows: Tensor, x: Tensor, patch: Geometry) -> Tensor:
    """Add patches up where they were read: the transpose of :func:`_gather`."""
    size = patch.output_size(tuple(x.shape[2:]))
    reach = _reach(patch, x)
    padded = F.pad(torch.zeros_like(x), flat_pads(reach))
    by_tap = rows.view(x.shape[1], patch.taps, x.shape[0], *size)
    for tap, window in enumerate(_windows(patch, x)):
        padded[window] += by_tap[:, tap].transpose(0, 1)
    return F.pad(padded, flat_pads(tuple((-low, -high) for low, high in reach)))


def _reach(patch: Geometry, x: Tensor) -> tuple[tuple[int, int], ...]:
    """Zeros that patches read before and after the input, per dimension."""
    sizes = tuple(x.shape[2:])
    return tuple(
        (max(0, -taps[0]), max(0, step * (m - 1) + taps[-1] - (n - 1)))
        for taps, step, n, m in zip(
            patch.offsets, patch.stride, sizes, patch.output_size(sizes), strict=True
        )
    )


def _windows(patch: Geometry, x: Tensor) -> Iterator[tuple[slice, ...]]:
    """For every tap the positions of the padded input that the patches have there."""
    size = patch.output_size(tuple(x.shape[2:]))
    lows = [low for low, _ in _reach(patch, x)]
    for tap in itertools.product(*patch.offsets):
        starts = [low + t for low, t in zip(lows, tap, strict=True)]
        yield (
            slice(None), slice(None),
            *(
                slice(start, start + step * (m - 1) + 1, step)
                for start, step, m in zip(starts, patch.stride, size, strict=True)
            ),
        )  # fmt: skip
