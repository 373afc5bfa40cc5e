r"""Moments of depthwise patches: correlations of shifted images, and corrections at the borders.

A patch at the position :math:`p` reads :math:`x_{sp+t}` for each tap :math:`t`. At stride ``s`` the
image falls into phases :math:`x^r_p = x_{sp+r}`, and the tap reads one of them, shifted: with
:math:`t = s\,i + r`, it reads :math:`x^r_{p+i}`. Over *all* positions where a patch meets the
image, the products of two taps therefore depend on the distance of their shifts alone,

.. math:: \sum_p x^r_{p+i}\,x^{r'}_{p+i'} = c^{rr'}_{i'-i},

a correlation of two phases. That is the weight gradient of a depthwise convolution that reads one
phase and whose output gradient is the other: a native call instead of a product for each pair of
taps. The gradient of the image follows alike, by one convolution for each phase of the result.

The branch does not compute the outermost of these positions. They form a frame of at most four
strips, whose patches are written out, and what they add is taken away again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import Geometry, layer_arguments
from reparam.branching.online.moments import Later, is_precise, with_outputs
from reparam.branching.online.shifts import LAGS, Axis, Maps, Span, lag_windows, maps_of


class Toeplitz:
    """The patches of ``x``, of shape ``(N, C, W)`` or ``(N, C, H, W)``.

    Args:
        x: The input.
        patch: The patches; their number of dimensions is that of the input.
        turned: Whether results are to be turned back to the usual layout, as the input was; None
            to decide that and turn it.

    """

    def __init__(self, x: Tensor, patch: Geometry, *, turned: bool | None = None) -> None:
        """Turn the input where native depthwise convolutions are faster so."""
        self.turned = _is_better_turned(x) if turned is None else turned
        self.kept = x.contiguous(memory_format=torch.channels_last) if self.turned else x
        self._patch = patch
        size = tuple(x.shape[2:])
        axes = [
            Axis(n, m, taps[0], taps[-1], step)
            for n, m, taps, step in zip(
                size, patch.output_size(size), patch.offsets, patch.stride, strict=True
            )
        ]
        self._rows, self._columns = axes if patch.dims == 2 else [Axis(1, 1, 0, 0, 1), *axes]
        self._count = len(x) * self._rows.out * self._columns.out

    # ---------------------------------------------------------------- moments

    def moments(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mean ``(C, taps)`` and the covariance ``(C, taps, taps)``.

        Squares are about zero where that is precise, about the mean of the image where it is not.
        """
        images = self._four(self.kept).to(dtype)
        total = _over_images(images)
        if images.device.type == "cpu":
            mean, covariance = self._about_zero(images, total)
            if is_precise(mean, covariance.diagonal(dim1=1, dim2=2)):
                return mean, covariance
        centre = total.mean((1, 2)) / len(images)
        return self._about(images - centre.view(-1, 1, 1), centre)

    def _about_zero(self, images: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._maps(images)
        across = total.contiguous().flatten(0, 1) @ maps.reads[1].mT
        mean = maps.reads[0] @ across.view(len(total), self._rows.size, -1)
        mean = mean.flatten(1).div_(self._count)
        products = self._products(images, maps).div_(self._count)
        return mean, products.sub_(mean.unsqueeze(2) * mean.unsqueeze(1))

    def _about(self, images: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of centred images hold zeros instead of the mean beyond the border."""
        maps = self._maps(images)
        high, wide = self._rows.taps, self._columns.taps
        # Sums of what t reads while t' reads the image: (C, taps, taps).
        inside = maps.inside[0] @ (_over_images(images) @ maps.inside[1].mT)
        inside = inside.view(-1, high, high, wide, wide).transpose(2, 3)
        inside = inside.reshape(-1, high * wide, high * wide).div_(self._count)
        mean = inside.diagonal(dim1=1, dim2=2)
        share = maps.present.diagonal()
        shift = centre[:, None, None]
        mixed = torch.addcmul(inside, mean.unsqueeze(2), share, value=-1).mul_(shift)
        spread = torch.addcmul(mixed + mixed.mT, mean.unsqueeze(2), mean.unsqueeze(1), value=-1)
        spread.addcmul_(shift.square(), torch.addr(maps.present, share, share, alpha=-1))
        products = self._products(images, maps)
        return torch.addcmul(mean, centre[:, None], share), spread.add_(
            products, alpha=1 / self._count
        )

    def _products(self, images: Tensor, maps: Maps) -> Tensor:
        """Sums of the products of taps over the computed positions: ``(C, taps, taps)``."""
        phases = [self._phase(images, phase) for phase in maps.phases]
        high, wide = self._rows, self._columns
        found = [
            _correlations(left, right, high.shifts, wide.shifts, both=len(phases) > 1)
            for left, right in itertools.combinations_with_replacement(phases, 2)
        ]
        sums = torch.cat(found, 1) if len(found) > 1 else found[0]
        total = sums.index_select(1, maps.products).view(
            -1, high.taps, wide.taps, high.taps, wide.taps
        )
        for strip in maps.strips:
            at = self._taps_of(strip)
            rows = self._written_out(images, strip)
            part = (rows @ rows.mT).view(len(total), *(strip[0].taps, strip[1].taps) * 2)
            total[(slice(None), *at, *at)] -= part
        return total.view(-1, high.taps * wide.taps, high.taps * wide.taps)

    def _phase(self, images: Tensor, phase: tuple[int, int]) -> Tensor:
        """Every how many-th row and column, filled up with zeros to the size of the largest."""
        rows, columns = self._rows, self._columns
        if rows.step == columns.step == 1:
            return images
        part = images[:, :, phase[0] :: rows.step, phase[1] :: columns.step]
        lacking = (0, columns.phase - part.shape[3], 0, rows.phase - part.shape[2])
        if any(lacking):
            part = F.pad(part, lacking)
        return part.contiguous(memory_format=_format(images))

    # ---------------------------------------------------------------- the convolution

    def reads(self, layer: Geometry) -> bool:
        """Whether a convolution has these patches, and the padding of a native one."""
        have = self._patch
        return layer_arguments(layer)[0].pre_pad is None and (
            (layer.offsets, layer.stride, layer.extent, layer.groups)
            == (have.offsets, have.stride, have.extent, have.groups)
        )

    def convolved(self, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        return self._turned_back(self._layer(kernel)(self.kept, kernel, bias))

    def to_kernel(self, grad: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of its kernel and bias."""
        _, to_kernel, to_bias = self._native(grad, kernel, (False, True, True))
        return to_kernel, to_bias

    def _layer(self, kernel: Tensor) -> Any:
        return layer_arguments(with_outputs(self._patch, len(kernel)))[0]

    def _native(
        self, grad: Tensor, kernel: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        layer = self._layer(kernel)
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad, self.kept, kernel, [len(kernel)], layer.stride,
            [low for low, _ in layer.pads], layer.dilation, False, [0] * layer.dims, layer.groups,
            wanted,
        )  # fmt: skip
        return found

    # ---------------------------------------------------------------- the way back

    def gradient(
        self, linear: tuple[Tensor, Tensor] | None, before: Tensor | None, laters: Sequence[Later]
    ) -> Tensor:
        """Add up the gradients of the input."""
        total: Tensor | None = None
        for grad, kernel in laters:
            part = self._native(grad, kernel, (True, False, False))[0]
            total = part if total is None else total.add_(part)
        if total is None:
            total = torch.zeros_like(self.kept)
        if linear is not None:
            images = self._four(self.kept)
            matrix, shift = (number.to(images.dtype) for number in linear)
            self._add_map(self._four(total), images, matrix, shift)
        total = self._turned_back(total)
        return total if before is None else total.add_(before)

    def _add_map(self, total: Tensor, images: Tensor, matrix: Tensor, shift: Tensor) -> None:
        maps, channels = self._maps(images), len(matrix)
        rows, columns = self._rows, self._columns
        for back in maps.back:
            kernel = (matrix.flatten(1) @ back.kernel).view(channels, 1, *back.size)
            part = F.conv2d(
                images, kernel, shift @ back.taps, (rows.step, columns.step), back.padding,
                groups=channels,
            )  # fmt: skip
            to = total[:, :, back.phase[0] :: rows.step, back.phase[1] :: columns.step]
            to += part[:, :, : to.shape[2], : to.shape[3]]
        taps = (rows.taps, columns.taps)
        for strip in maps.strips:
            at = self._taps_of(strip)
            square = matrix.view(-1, *taps, *taps)[(slice(None), *at, *at)]
            several = strip[0].taps * strip[1].taps
            square = square.reshape(channels, several, several)
            const = shift.view(-1, *taps)[(slice(None), *at)].reshape(channels, several, 1)
            mapped = torch.baddbmm(const, square, self._written_out(images, strip))
            self._take_away(total, mapped, strip)

    # ---------------------------------------------------------------- strips

    def _taps_of(self, strip: tuple[Span, Span]) -> tuple[slice, slice]:
        first, second = (
            slice(span.first - axis.first, span.last + 1 - axis.first)
            for span, axis in zip(strip, (self._rows, self._columns), strict=True)
        )
        return first, second

    def _written_out(self, images: Tensor, strip: tuple[Span, Span]) -> Tensor:
        """The patches of a strip, of the taps that meet the image: ``(C, taps, N * positions)``."""
        rows, columns = strip
        (top, bottom), (left, right) = self._places(strip)
        part = F.pad(
            images,
            (-left, right - self._columns.size, -top, bottom - self._rows.size),
        )
        part = part.unfold(2, rows.taps, self._rows.step).unfold(
            3, columns.taps, self._columns.step
        )
        rows_of = part.permute(1, 4, 5, 0, 2, 3).reshape(len(part[0]), rows.taps * columns.taps, -1)
        return rows_of.contiguous()  # views of other strides are multiplied one by one

    def _places(self, strip: tuple[Span, Span]) -> tuple[tuple[int, int], tuple[int, int]]:
        return strip[0].places(self._rows), strip[1].places(self._columns)

    def _take_away(self, total: Tensor, patches: Tensor, strip: tuple[Span, Span]) -> None:
        """Subtract patches of a strip where they were read."""
        rows, columns = strip
        (top, bottom), (left, right) = self._places(strip)
        by_tap = patches.view(
            total.shape[1], rows.taps, columns.taps, len(total), rows.positions, columns.positions
        ).permute(1, 2, 3, 0, 4, 5)
        whole = patches.new_zeros(*total.shape[:2], bottom - top, right - left)
        steps = self._rows.step, self._columns.step
        for t, s in itertools.product(range(rows.taps), range(columns.taps)):
            whole[
                :, :,
                t : t + steps[0] * (rows.positions - 1) + 1 : steps[0],
                s : s + steps[1] * (columns.positions - 1) + 1 : steps[1],
            ] += by_tap[t, s]  # fmt: skip
        high, wide = self._rows.size, self._columns.size
        inner = whole[:, :, max(0, -top) : high - top, max(0, -left) : wide - left]
        total[:, :, max(0, top) : bottom, max(0, left) : right] -= inner

    # ---------------------------------------------------------------- layouts

    def turn(self, images: Tensor) -> Tensor:
        """Images in the layout of the kept input."""
        if self.turned:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _turned_back(self, images: Tensor) -> Tensor:
        return images.contiguous() if self.turned else images

    def _four(self, images: Tensor) -> Tensor:
        return images if images.dim() == 4 else images.unsqueeze(2)

    def _maps(self, images: Tensor) -> Maps:
        return maps_of(self._rows, self._columns, images.device, images.dtype)


def _is_better_turned(x: Tensor) -> bool:
    """Whether depthwise convolutions are faster channels last, the turning included."""
    return (
        x.dim() == 4
        and x.device.type == "cpu"
        and x.dtype in {torch.float32, torch.bfloat16}
        and x.is_contiguous()
        and x.shape[1] > 1
    )


def _over_images(images: Tensor) -> Tensor:
    """Their sum ``(C, H, W)``, taken in the order of memory, which is many times faster."""
    if _format(images) is torch.contiguous_format:
        return images.sum(0)
    return images.movedim(1, -1).flatten(1).sum(0).view(*images.shape[2:], -1).movedim(-1, 0)


def _format(images: Tensor) -> torch.memory_format:
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _correlations(left: Tensor, right: Tensor, high: int, wide: int, *, both: bool) -> Tensor:
    """Sums of ``left[p] * right[p + lag]``: ``(C, lags)``, columns from zero on or both ways."""
    channels, width, windows = left.shape[1], left.shape[3], lag_windows(wide, both=both)
    start = 1 - wide if both else 0
    padding = [high - 1, 0]
    if windows == 1 and start == -1:
        padding[1] = 1
    else:
        right = F.pad(right, (-start, start + windows * LAGS - 1))
    weight = left.new_empty(channels, 1, 2 * high - 1, LAGS)
    found = [
        torch.ops.aten.convolution_backward(
            left, right if windows == 1 else right[..., at : at + width + LAGS - 1], weight, None,
            [1, 1], padding, [1, 1], False, [0, 0], channels, [False, True, False],
        )[1]
        for at in range(0, windows * LAGS, LAGS)
    ]  # fmt: skip
    return torch.cat(found, 3).flatten(1)
