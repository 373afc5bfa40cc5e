r"""Moments of depthwise patches at stride 1: an autocorrelation, and corrections at the borders.

Over *all* positions where a patch meets the image, the products of two taps depend on their
distance alone: :math:`\sum_p x_{p+t}\,x_{p+t'} = r_{t'-t}`, the autocorrelation of the image. That
is the weight gradient of a depthwise convolution whose output gradient is the image itself: one
native call instead of a product for each pair of taps. The branch does not compute the outermost of
these positions. What they add is subtracted by inclusion and exclusion: rows of positions, where
the products are correlations along the rows of the image near its border; columns, alike; and the
corners, which both hold, added again.

The image is centred first, so that little is lost where its mean is large against its spread. A
patch at the border holds zeros instead of the mean, which :meth:`Toeplitz._inside` accounts for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import Geometry

__all__ = ["Toeplitz", "lag_windows"]

_LAGS = 3
"""Columns of lags in one native call: of all widths, CPUs are fast at this one alone."""


class _Axis(NamedTuple):
    """One dimension: the size of the image, that of the output, and the first and last tap."""

    size: int
    out: int
    first: int
    last: int

    @property
    def taps(self) -> int:
        return self.last - self.first + 1

    def inside(self, like: Tensor) -> Tensor:
        """For taps ``t, t'`` the positions read by ``t`` while ``t'`` reads the image, too."""
        position = torch.arange(self.size, device=like.device)
        tap = torch.arange(self.first, self.last + 1, device=like.device)
        output = position - tap[:, None, None]
        other = output + tap[:, None]
        computed = (output >= 0) & (output < self.out)
        return (computed & (other >= 0) & (other < self.size)).to(like.dtype)

    def left_out(self) -> list[list[tuple[int, int]]]:
        """For each position that is not computed its taps that meet the image, and where."""
        places = [*range(-self.last, 0), *range(self.out, self.size - self.first)]
        return [
            [
                (t - self.first, place + t)
                for t in range(self.first, self.last + 1)
                if 0 <= place + t < self.size
            ]
            for place in places
        ]


class _Pairs(NamedTuple):
    """Pairs of taps at positions that are not computed, and the lines of the image they read."""

    taps: list[int]
    others: list[int]
    lines: list[int]
    other_lines: list[int]
    mirrored: list[int]

    @classmethod
    def of(cls, axis: _Axis) -> _Pairs:
        pairs = [pair for found in axis.left_out() for pair in itertools.product(found, found)]
        # A tap and a line belong to one position only, so a pair occurs once.
        return cls(
            [t for (t, _), _ in pairs],
            [u for _, (u, _) in pairs],
            [line for (_, line), _ in pairs],
            [line for _, (_, line) in pairs],
            [pairs.index((second, first)) for first, second in pairs],
        )


@dataclass(frozen=True)
class Toeplitz:
    """The patches of one operator on images of one size; ``count`` of them for each channel."""

    rows: _Axis
    columns: _Axis
    count: int
    dims: int

    @classmethod
    def of(cls, patch: Geometry, x: Tensor) -> Toeplitz:
        """Describe the patches of ``x``, of shape ``(N, C, W)`` or ``(N, C, H, W)``."""
        size = tuple(x.shape[2:])
        axes = [
            _Axis(n, m, taps[0], taps[-1])
            for n, m, taps in zip(size, patch.output_size(size), patch.offsets, strict=True)
        ]
        rows, columns = axes if patch.dims == 2 else [_Axis(1, 1, 0, 0), *axes]
        return cls(rows, columns, len(x) * rows.out * columns.out, patch.dims)

    def moments(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mean ``(C, taps)`` and the covariance ``(C, taps, taps)``."""
        images = self._images(x)
        centre = images.mean((0, 2, 3), dtype=dtype)
        images = images - centre.view(-1, 1, 1)
        inside, present = self._inside(images)
        mean = inside.diagonal(dim1=1, dim2=2) / self.count
        share = present.diagonal()
        shift = centre[:, None, None]
        mixed = shift * (inside / self.count - mean[:, :, None] * share)
        covariance = self._products(images).div_(self.count)
        covariance -= mean[:, :, None] * mean[:, None, :]
        covariance += mixed + mixed.mT
        covariance += shift.square() * (present - share[:, None] * share)
        return mean + centre[:, None] * share, covariance

    def gradient(self, x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        """Add up what a map of the patches, ``matrix @ p + shift``, gives where they were read."""
        images = self._images(x)
        channels, (high, wide) = len(matrix), self._taps
        lags = matrix.new_zeros(channels, (2 * high - 1) * (2 * wide - 1))
        lags.index_add_(1, self._lags_of_pairs(x.device), matrix.flatten(1))
        kernel = lags.view(channels, 1, 2 * high - 1, 2 * wide - 1)
        total = F.conv2d(
            images, kernel, shift.sum(1), padding=(high - 1, wide - 1), groups=channels
        )
        blocks = matrix.view(channels, high, wide, high, wide)
        shifts = shift.view(channels, high, wide)
        _return_lines(total, images, blocks, shifts, _Pairs.of(self.rows))
        _return_lines(
            total.mT, images.mT, blocks.permute(0, 2, 1, 4, 3), shifts.mT, _Pairs.of(self.columns)
        )
        for taps, at in self._corners():
            patch = _flat(images[at])
            square = _block(blocks, taps).flatten(3).flatten(1, 2)
            back = torch.baddbmm(shifts[taps].flatten(1).unsqueeze(2), square, patch)
            total[at] += back.unflatten(1, images[at].shape[2:]).movedim(3, 0)
        return total.view(x.shape)

    @property
    def _taps(self) -> tuple[int, int]:
        return self.rows.taps, self.columns.taps

    def _images(self, x: Tensor) -> Tensor:
        return x if self.dims == 2 else x.unsqueeze(2)

    def _products(self, images: Tensor) -> Tensor:
        """Sum the products of all pairs of taps over the positions that are computed."""
        channels, (high, wide) = images.shape[1], self._taps
        lags = _correlations(images, images, high, wide).flatten(1)
        total = lags[:, self._half_lags_of_pairs(images.device)]
        blocks = total.view(channels, high, wide, high, wide)
        _subtract_lines(blocks, images, _Pairs.of(self.rows))
        _subtract_lines(blocks.permute(0, 2, 1, 4, 3), images.mT, _Pairs.of(self.columns))
        for taps, at in self._corners():
            patch = _flat(images[at])
            block = _block(blocks, taps)
            # Few numbers for each channel: faster than a product of matrices for each.
            block += (patch.unsqueeze(1) * patch.unsqueeze(2)).sum(3).view(block.shape)
        return total.view(channels, high * wide, -1)

    def _inside(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the values that ``t`` reads while ``t'`` reads the image; and how often it does.

        Shapes ``(C, taps, taps)`` and ``(taps, taps)``, the second as a share of all positions.
        """
        high, wide = self._taps
        along = self.rows.inside(images), self.columns.inside(images)
        rows, columns = (mask.flatten(0, 1) for mask in along)
        # Two plain products instead of one for each channel.
        across = (images.sum(0) @ columns.T).transpose(0, 1).flatten(1)
        sums = (rows @ across).view(high, high, -1, wide, wide)
        shares = (
            mask.sum(2) / axis.out
            for mask, axis in zip(along, (self.rows, self.columns), strict=True)
        )
        by_pair = sums.permute(2, 0, 3, 1, 4).reshape(-1, high * wide, high * wide)
        return by_pair, torch.kron(*shares)

    def _pairs(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Distances ``t' - t`` of all pairs of taps, along the rows and the columns."""
        row, column = (torch.arange(n, device=device) for n in self._taps)
        shape = (*self._taps, *self._taps)
        down = (row[None, None, :, None] - row[:, None, None, None]).expand(shape)
        right = (column - column[:, None, None]).expand(shape)
        return down.flatten(), right.flatten()

    def _lags_of_pairs(self, device: torch.device) -> Tensor:
        down, right = self._pairs(device)
        high, wide = self._taps
        return (down + high - 1) * (2 * wide - 1) + right + wide - 1

    def _half_lags_of_pairs(self, device: torch.device) -> Tensor:
        down, right = self._pairs(device)
        down = torch.where(right < 0, -down, down)
        return (down + self.rows.taps - 1) * lag_windows(self.columns.taps) * _LAGS + right.abs()

    def _corners(self) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Positions left out in both dimensions: their taps, and the part of the image read."""
        for down, right in itertools.product(self.rows.left_out(), self.columns.left_out()):
            taps = (slice(None), *(slice(t[0][0], t[-1][0] + 1) for t in (down, right)))
            at = (slice(t[0][1], t[-1][1] + 1) for t in (down, right))
            yield taps, (slice(None), slice(None), *at)


def lag_windows(taps: int) -> int:
    """How many native calls the lags of so many columns take."""
    return -(-taps // _LAGS)


def _correlations(left: Tensor, right: Tensor, high: int, wide: int) -> Tensor:
    """Sums of ``left[p] * right[p + lag]``: ``(C, 2 * high - 1, lags)``, columns from zero on."""
    channels, width = left.shape[1], left.shape[3]
    windows = lag_windows(wide)
    padded = F.pad(right, (0, windows * _LAGS - 1))
    weight = left.new_empty(channels, 1, 2 * high - 1, _LAGS)
    found = [
        torch.ops.aten.convolution_backward(
            left, padded[..., start : start + width + _LAGS - 1], weight, None, [1, 1],
            [high - 1, 0], [1, 1], False, [0, 0], channels, [False, True, False],
        )[1]
        for start in range(0, windows * _LAGS, _LAGS)
    ]  # fmt: skip
    return torch.cat(found, 3).squeeze(1)


def _subtract_lines(blocks: Tensor, images: Tensor, pairs: _Pairs) -> None:
    """Subtract from ``(C, high, wide, high, wide)`` the products at rows that are left out."""
    if not pairs.taps:
        return
    left, right = _rows(images, pairs.lines), _rows(images, pairs.other_lines)
    width, wide = images.shape[3], blocks.shape[2]
    lags = torch.stack(
        [
            (left[..., : max(0, width - lag)] * right[..., lag:]).sum(0).sum(2)
            for lag in range(wide)
        ],
        dim=2,
    )
    tap = torch.arange(wide, device=lags.device)
    distance = tap - tap[:, None]
    # A negative lag of two rows is a positive one of the same two the other way round.
    here, there = (values[:, :, distance.abs()] for values in (lags, lags[pairs.mirrored]))
    products = torch.where(distance < 0, there, here)
    for pair, (t, u) in enumerate(zip(pairs.taps, pairs.others, strict=True)):
        blocks[:, t, :, u] -= products[pair]


def _return_lines(
    total: Tensor, images: Tensor, blocks: Tensor, shifts: Tensor, pairs: _Pairs
) -> None:
    """Subtract what the map gives at rows that are left out."""
    if not pairs.taps:
        return
    count, (channels, _, wide, *_) = len(pairs.taps), blocks.shape
    chosen = blocks[:, pairs.taps, :, pairs.others]  # (pairs, C, wide, wide)
    kernel = chosen.new_zeros(count, channels, 2 * wide - 1)
    for tap in range(wide):
        kernel[:, :, wide - 1 - tap : 2 * wide - 1 - tap] += chosen[:, :, tap]
    # Every row is an image of one row, and a channel.
    rows = _rows(images, pairs.other_lines).flatten(1, 2).unsqueeze(2)
    back = F.conv2d(
        rows, kernel.view(-1, 1, 1, 2 * wide - 1), padding=(0, wide - 1), groups=count * channels
    ).view(len(images), count, channels, -1)
    for pair, line in enumerate(pairs.lines):
        total[:, :, line] -= back[:, pair]
    for tap, line in set(zip(pairs.taps, pairs.lines, strict=True)):
        total[:, :, line] -= shifts[:, tap].sum(1)[:, None]


def _rows(images: Tensor, lines: list[int]) -> Tensor:
    """Some rows of the images: ``(N, lines, C, W)``."""
    return torch.stack([images[:, :, line] for line in lines], 1)


def _flat(patch: Tensor) -> Tensor:
    """Lay ``(N, C, a, b)`` out as ``(C, a * b, N)``."""
    return patch.movedim(0, 3).flatten(1, 2)


def _block(blocks: Tensor, taps: tuple[slice, ...]) -> Tensor:
    return blocks[(*taps, *taps[1:])]
