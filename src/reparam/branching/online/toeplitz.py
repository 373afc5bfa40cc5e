r"""Moments of depthwise patches at stride 1: an autocorrelation, and corrections at the borders.

Over *all* positions where a patch meets the image, the products of two taps depend on their
distance alone: :math:`\sum_p x_{p+t}\,x_{p+t'} = r_{t'-t}`, the autocorrelation of the image. That
is the weight gradient of a depthwise convolution whose output gradient is the image itself: one
native call instead of a product for each pair of taps. The branch does not compute the outermost of
these positions. What they add is subtracted by inclusion and exclusion: rows of positions, where
the products are correlations along the rows of the image near its border; columns, alike; and the
corners, which both hold, added again.

So all products of taps are one fixed linear map of few sums, and the gradient of the image follows
by the transposed map. Both maps depend on sizes alone and are kept (:class:`_Maps`): what is left
for a step are few operations on large tensors.

The image is centred first, so that little is lost where its mean is large against its spread. A
patch at the border holds zeros instead of the mean, which ``inside`` accounts for.
"""

from __future__ import annotations

import functools
import itertools
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

    def reads(self) -> Tensor:
        """For each tap the positions that it reads: ``(taps, size)``."""
        output = torch.arange(self.size) - torch.arange(self.first, self.last + 1)[:, None]
        return ((output >= 0) & (output < self.out)).double()

    def reads_with(self) -> Tensor:
        """For taps ``t, t'`` the positions read by ``t`` while ``t'`` reads the image, too."""
        tap = torch.arange(self.first, self.last + 1)
        other = torch.arange(self.size) - tap[:, None, None] + tap[:, None]
        return self.reads()[:, None] * ((other >= 0) & (other < self.size))

    def left_out(self) -> list[list[tuple[int, int]]]:
        """For each position that is not computed its taps that meet the image, and where."""
        places = [*range(-self.last, 0), *range(self.out, self.size - self.first)]
        found = [
            [
                (t - self.first, place + t)
                for t in range(self.first, self.last + 1)
                if 0 <= place + t < self.size
            ]
            for place in places
        ]
        return [taps for taps in found if taps]

    def pairs(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Pairs of such taps and the lines of the image that they read; each occurs once."""
        return [pair for taps in self.left_out() for pair in itertools.product(taps, taps)]


@dataclass(frozen=True)
class _Maps:
    """What depends on sizes alone.

    Attributes:
        products: From sums to the products of taps: lags of the image, then those of pairs of rows,
            of pairs of columns, then products of corner pixels; ``(sums, taps * taps)``.
        returned: From a map of the patches to kernels for the image, for pairs of rows, of columns
            and of corner pixels: ``(taps * taps, numbers)``.
        rows: Rows of the image in pairs, ``(2, pairs)``.
        columns: Columns, alike.
        corners: Rows and columns of pixels that are near two borders, ``(2, pixels)``.
        reads: For each axis the positions that a tap reads, ``(taps, size)``.
        inside: For each axis those that ``t`` reads while ``t'`` reads the image,
            ``(taps * taps, size)``.
        present: How often two taps both read the image, as a share, ``(taps, taps)``.

    """

    products: Tensor
    returned: Tensor
    rows: Tensor
    columns: Tensor
    corners: Tensor
    reads: tuple[Tensor, Tensor]
    inside: tuple[Tensor, Tensor]
    present: Tensor


@dataclass(frozen=True)
class Toeplitz:
    """The patches of one operator on images of one size; ``count`` of them for each channel."""

    rows: _Axis
    columns: _Axis
    count: int

    @classmethod
    def of(cls, patch: Geometry, x: Tensor) -> Toeplitz:
        """Describe the patches of ``x``, of shape ``(N, C, W)`` or ``(N, C, H, W)``."""
        size = tuple(x.shape[2:])
        axes = [
            _Axis(n, m, taps[0], taps[-1])
            for n, m, taps in zip(size, patch.output_size(size), patch.offsets, strict=True)
        ]
        rows, columns = axes if patch.dims == 2 else [_Axis(1, 1, 0, 0), *axes]
        return cls(rows, columns, len(x) * rows.out * columns.out)

    def moments(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mean ``(C, taps)`` and the covariance ``(C, taps, taps)``."""
        images = x if x.dim() == 4 else x.unsqueeze(2)
        maps = self._maps(images.device, dtype)
        centre = images.mean((0, 2, 3), dtype=dtype)
        images = images - centre.view(-1, 1, 1)
        taps = self.rows.taps * self.columns.taps
        # Sums of what t reads while t' reads the image: (C, taps, taps).
        across = images.sum(0) @ maps.inside[1].mT
        inside = self._by_taps(maps.inside[0] @ across).div_(self.count)
        mean = inside.diagonal(dim1=1, dim2=2)
        share = maps.present.diagonal()
        shift = centre[:, None, None]
        mixed = torch.addcmul(inside, mean.unsqueeze(2), share, value=-1).mul_(shift)
        spread = torch.addcmul(mixed + mixed.mT, mean.unsqueeze(2), mean.unsqueeze(1), value=-1)
        spread.addcmul_(shift.square(), torch.addr(maps.present, share, share, alpha=-1))
        products = (self._sums(images, maps) @ maps.products).view(-1, taps, taps)
        return torch.addcmul(mean, centre[:, None], share), spread.add_(
            products, alpha=1 / self.count
        )

    def gradient(self, x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        """Add up what a map of the patches, ``matrix @ p + shift``, gives where they were read."""
        images = x if x.dim() == 4 else x.unsqueeze(2)
        maps = self._maps(images.device, images.dtype)
        channels, (high, wide) = len(matrix), (self.rows.taps, self.columns.taps)
        kernels = matrix.flatten(1) @ maps.returned
        sizes = [
            (2 * high - 1) * (2 * wide - 1), maps.rows.shape[1] * (2 * wide - 1),
            maps.columns.shape[1] * (2 * high - 1), maps.corners.shape[1] ** 2,
        ]  # fmt: skip
        lags, rows, columns, corners = kernels.split(sizes, 1)
        total = F.conv2d(
            images, lags.reshape(channels, 1, 2 * high - 1, 2 * wide - 1),
            padding=(high - 1, wide - 1), groups=channels,
        )  # fmt: skip
        _return_lines(total, images, rows, maps.rows)
        _return_lines(total.mT, images.mT, columns, maps.columns)
        if maps.corners.numel():
            at = (slice(None), slice(None), *maps.corners)
            square = corners.view(channels, -1, maps.corners.shape[1])
            # Each output pixel has rows of its own in the map, so none is written twice.
            total[at] += (square * images[at].unsqueeze(2)).sum(3)
        constant = maps.reads[0].mT @ shift.view(channels, high, wide) @ maps.reads[1]
        return total.add_(constant).view(x.shape)

    def _sums(self, images: Tensor, maps: _Maps) -> Tensor:
        """The sums that all products of taps are made of: ``(C, sums)``."""
        found = [_correlations(images, images, self.rows.taps, self.columns.taps).flatten(1)]
        found += [
            _line_sums(turned, pairs, axis.taps)
            for turned, pairs, axis in (
                (images, maps.rows, self.columns),
                (images.mT, maps.columns, self.rows),
            )
            if pairs.numel()
        ]
        if maps.corners.numel():
            pixels = images[(slice(None), slice(None), *maps.corners)]
            found.append((pixels.unsqueeze(3) * pixels.unsqueeze(2)).sum(0).flatten(1))
        return torch.cat(found, 1)

    def _by_taps(self, sums: Tensor) -> Tensor:
        """From ``(C, rows * rows, columns * columns)`` to ``(C, taps, taps)``."""
        high, wide = self.rows.taps, self.columns.taps
        split = sums.view(-1, high, high, wide, wide)
        return split.transpose(2, 3).reshape(-1, high * wide, high * wide)

    def _maps(self, device: torch.device, dtype: torch.dtype) -> _Maps:
        return _maps(self.rows, self.columns, device, dtype)


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
    return (torch.cat(found, 3) if windows > 1 else found[0]).squeeze(1)


def _line_sums(images: Tensor, pairs: Tensor, wide: int) -> Tensor:
    """Correlations of pairs of rows at lags from zero on: ``(C, pairs * lags)``."""
    left, right = (images.index_select(2, lines).flatten(1, 2).unsqueeze(2) for lines in pairs)
    return _correlations(left, right, 1, wide).reshape(images.shape[1], -1)


def _return_lines(total: Tensor, images: Tensor, kernels: Tensor, pairs: Tensor) -> None:
    """Add to each first row of a pair what its kernel makes of the second."""
    if not pairs.numel():
        return
    count, (batch, channels, _, width) = pairs.shape[1], images.shape
    lines = images.index_select(2, pairs[1]).view(batch, -1, 1, width)
    kernel = kernels.reshape(channels * count, 1, 1, -1)
    back = F.conv2d(lines, kernel, padding=(0, kernel.shape[3] // 2), groups=channels * count)
    total.index_add_(2, pairs[0], back.view(batch, channels, count, width))


# ------------------------------------------------------------------ maps, of sizes alone


@functools.lru_cache(maxsize=256)
def _maps(rows: _Axis, columns: _Axis, device: torch.device, dtype: torch.dtype) -> _Maps:
    row_pairs, column_pairs = (_distinct(axis.pairs()) for axis in (rows, columns))
    lines = [sorted({line for taps in axis.left_out() for _, line in taps})
             for axis in (rows, columns)]  # fmt: skip
    pixels = list(itertools.product(lines[0], lines[1]))
    inside = rows.reads_with(), columns.reads_with()
    shares = (
        mask.sum(2) / max(axis.out, 1) for mask, axis in zip(inside, (rows, columns), strict=True)
    )

    def there(numbers: Tensor) -> Tensor:
        return numbers.to(device, dtype)

    def places(found: list[tuple[int, int]]) -> Tensor:
        return torch.tensor(found, device=device, dtype=torch.long).view(-1, 2).T

    return _Maps(
        there(_to_products(rows, columns, row_pairs, column_pairs, pixels)),
        there(_to_kernels(rows, columns, row_pairs, column_pairs, pixels)),
        places(row_pairs), places(column_pairs), places(pixels),
        (there(rows.reads()), there(columns.reads())),
        (there(inside[0].flatten(0, 1)), there(inside[1].flatten(0, 1))),
        there(torch.kron(*shares)),
    )  # fmt: skip


def _distinct(pairs: list[tuple[tuple[int, int], tuple[int, int]]]) -> list[tuple[int, int]]:
    return sorted({(line, other) for (_, line), (_, other) in pairs})


def _to_products(
    rows: _Axis,
    columns: _Axis,
    row_pairs: list[tuple[int, int]],
    column_pairs: list[tuple[int, int]],
    pixels: list[tuple[int, int]],
) -> Tensor:
    """Each product of taps ``(t, s), (u, v)`` as a sum of sums; a lag below zero is mirrored."""
    high, wide = rows.taps, columns.taps
    lags = [lag_windows(n) * _LAGS for n in (high, wide)]
    image = torch.zeros(2 * high - 1, lags[1], high, wide, high, wide)
    for t, s, u, v in itertools.product(range(high), range(wide), range(high), range(wide)):
        down, right = (u - t, v - s) if v >= s else (t - u, s - v)
        image[down + high - 1, right, t, s, u, v] = 1
    along_rows = torch.zeros(len(row_pairs), lags[1], high, wide, high, wide)
    for (t, i), (u, j) in rows.pairs():
        for s, v in itertools.product(range(wide), range(wide)):
            pair = (i, j) if v >= s else (j, i)
            along_rows[row_pairs.index(pair), abs(v - s), t, s, u, v] = -1
    along_columns = torch.zeros(len(column_pairs), lags[0], high, wide, high, wide)
    for (s, i), (v, j) in columns.pairs():
        for t, u in itertools.product(range(high), range(high)):
            pair = (i, j) if u >= t else (j, i)
            along_columns[column_pairs.index(pair), abs(u - t), t, s, u, v] = -1
    corners = _corners(rows, columns, pixels)
    parts = (image, along_rows, along_columns, corners)
    return torch.cat([part.reshape(-1, (high * wide) ** 2) for part in parts])


def _to_kernels(
    rows: _Axis,
    columns: _Axis,
    row_pairs: list[tuple[int, int]],
    column_pairs: list[tuple[int, int]],
    pixels: list[tuple[int, int]],
) -> Tensor:
    """A map of the patches as kernels: of the image, pairs of lines, and pairs of pixels."""
    high, wide = rows.taps, columns.taps
    taps = (high, wide, high, wide)
    image = torch.zeros(*taps, 2 * high - 1, 2 * wide - 1)
    for t, s, u, v in itertools.product(range(high), range(wide), range(high), range(wide)):
        image[t, s, u, v, u - t + high - 1, v - s + wide - 1] = 1
    along_rows = torch.zeros(*taps, len(row_pairs), 2 * wide - 1)
    for (t, i), (u, j) in rows.pairs():
        for s, v in itertools.product(range(wide), range(wide)):
            along_rows[t, s, u, v, row_pairs.index((i, j)), v - s + wide - 1] = -1
    along_columns = torch.zeros(*taps, len(column_pairs), 2 * high - 1)
    for (s, i), (v, j) in columns.pairs():
        for t, u in itertools.product(range(high), range(high)):
            along_columns[t, s, u, v, column_pairs.index((i, j)), u - t + high - 1] = -1
    corners = _corners(rows, columns, pixels).permute(2, 3, 4, 5, 0, 1)
    parts = (image, along_rows, along_columns, corners)
    return torch.cat([part.reshape((high * wide) ** 2, -1) for part in parts], 1)


def _corners(rows: _Axis, columns: _Axis, pixels: list[tuple[int, int]]) -> Tensor:
    """Which products of pixels two taps read at positions that are left out both ways."""
    high, wide = rows.taps, columns.taps
    found = torch.zeros(len(pixels), len(pixels), high, wide, high, wide)
    for ((t, i), (u, j)), ((s, k), (v, m)) in itertools.product(rows.pairs(), columns.pairs()):
        found[pixels.index((i, k)), pixels.index((j, m)), t, s, u, v] = 1
    return found
