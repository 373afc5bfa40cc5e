"""Patches as columns of a matrix: moments, convolutions and gradients are its products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import Geometry, flat_pads
from reparam.branching.online.moments import Later, is_precise, is_single_tap


class Rows:
    """The patches of an input, ``(N, groups * D, positions)``.

    Single taps are the input itself. Where its channels lie beside each other (channels last,
    linear layers), all images are one matrix, which is transposed.

    Args:
        x: The input.
        patch: The patches.

    """

    turned = False

    def __init__(self, x: Tensor, patch: Geometry) -> None:
        """Bring the input in the shape of a matrix; other patches than single taps are gathered."""
        self.kept, self._patch = x, patch
        self._groups = patch.groups
        self._width = patch.in_channels // patch.groups * patch.taps
        self._is_single = is_single_tap(patch)
        self._size = patch.output_size(tuple(x.shape[2:]))
        self._is_turned = self._is_single and patch.groups == 1 and _channels_are_last(x)
        self._columns = self._as_columns(x) if self._is_single else _gather(x, patch)

    def moments(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mean ``(groups, D)`` and the covariance ``(groups, D, D)``."""
        rows = self._columns
        count = rows.shape[0] * rows.shape[2]
        mean = rows.mean((0, 2), dtype=dtype).view(self._groups, self._width)
        if rows.dtype == dtype and rows.device.type == "cpu":
            covariance = self._gram(rows, 1 / count)
            covariance -= mean.unsqueeze(2) * mean.unsqueeze(1)
            if is_precise(mean, covariance.diagonal(dim1=1, dim2=2)):
                return mean, covariance
        centred = torch.empty_like(rows, dtype=dtype)
        torch.sub(rows, mean.view(-1, 1), out=centred)
        return mean, self._gram(centred, 1 / count)

    def reads(self, layer: Geometry) -> bool:
        """Whether a convolution has these patches."""
        have = self._patch
        return (layer.offsets, layer.stride, layer.extent, layer.groups, layer.in_channels) == (
            have.offsets, have.stride, have.extent, have.groups, have.in_channels
        )  # fmt: skip

    def turn(self, images: Tensor) -> Tensor:
        """Images as they are."""
        return images

    def convolved(self, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution, as one product for each image and group."""
        plus = kernel.new_zeros(1) if bias is None else bias
        y = self._product(self._by_group(kernel), self._columns, plus.view(-1, 1))
        return self._as_images(y)

    def to_kernel(self, grad: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of its kernel and bias."""
        flat = self._as_columns(grad)
        found = self._summed(flat, self._columns)
        return found.view(kernel.shape), flat.sum((0, 2))

    def gradient(
        self, linear: tuple[Tensor, Tensor] | None, before: Tensor | None, laters: Sequence[Later]
    ) -> Tensor:
        """Add up the gradients of the input."""
        rows = self._columns
        total = rows.new_zeros(1) if linear is None else linear[1].to(rows.dtype)
        total = total.view(-1, 1)
        for grad, kernel in laters:
            total = self._product(self._by_group(kernel).mT, self._as_columns(grad), total)
        if linear is not None:
            factor = linear[0].to(rows.dtype)
            if laters:
                self._add_product(total, factor, rows)
            else:
                total = self._product(factor, rows, total)
        if self._is_single:
            found = self._as_images(total)
        else:
            found = _scatter(total, self.kept, self._patch)
        return found if before is None else found.add_(before)

    # ---------------------------------------------------------------- shapes

    def _as_columns(self, images: Tensor) -> Tensor:
        """``(N, C, *size)`` as ``(N, C, positions)``, or all images as one, transposed."""
        if not self._is_turned:
            return images.flatten(2) if images.dim() > 2 else images.unsqueeze(2)
        return images.movedim(1, -1).reshape(1, -1, images.shape[1]).mT

    def _as_images(self, columns: Tensor) -> Tensor:
        if not self._is_turned:
            return columns.reshape(len(self.kept), -1, *self._size)
        return columns.mT.view(len(self.kept), *self._size, -1).movedim(-1, 1)

    def _by_group(self, kernel: Tensor) -> Tensor:
        return kernel.reshape(self._groups, -1, self._width)

    # ---------------------------------------------------------------- products

    def _in_groups(self, columns: Tensor) -> Tensor:
        """``(N * groups, rows of a group, positions)``."""
        return columns.reshape(len(columns) * self._groups, -1, columns.shape[2])

    def _product(self, left: Tensor, columns: Tensor, plus: Tensor) -> Tensor:
        """``plus + left @ columns``, ``left`` being one matrix for each group."""
        count, _, positions = columns.shape
        if self._is_turned:
            return torch.addmm(plus.mT.squeeze(0), columns[0].mT, left[0].mT).mT.unsqueeze(0)
        if left.shape[1:] == (1, 1):
            return torch.addcmul(plus, columns, left.view(-1, 1))
        size = (count * self._groups, left.shape[1], positions)
        wide = left.expand(count, *left.shape).reshape(-1, *left.shape[1:])
        start = plus.expand(count, self._groups * left.shape[1], positions).reshape(size)
        return torch.baddbmm(start, wide, self._in_groups(columns)).view(count, -1, positions)

    def _add_product(self, total: Tensor, left: Tensor, columns: Tensor) -> None:
        """Add a product in place."""
        if self._is_turned:
            total[0].mT.addmm_(columns[0].mT, left[0].mT)
        elif left.shape[1:] == (1, 1):
            total.addcmul_(columns, left.view(-1, 1))
        else:
            wide = left.expand(len(columns), *left.shape).reshape(-1, *left.shape[1:])
            self._in_groups(total).baddbmm_(wide, self._in_groups(columns))

    def _summed(self, left: Tensor, right: Tensor) -> Tensor:
        """Sum of ``left @ right.T`` over images: ``(groups, rows, rows)``."""
        if self._width == 1 and left.shape == right.shape:
            return (left * right).sum((0, 2)).view(-1, 1, 1)
        if self._groups > 1:
            both = self._in_groups(left) @ self._in_groups(right).mT
            return both.view(len(left), self._groups, *both.shape[1:]).sum(0)
        start = left.new_empty(left.shape[1], right.shape[1])
        return torch.addbmm(start, left, right.mT, beta=0).unsqueeze(0)

    def _gram(self, rows: Tensor, share: float) -> Tensor:
        return self._summed(rows, rows).mul_(share)


def _channels_are_last(x: Tensor) -> bool:
    if x.dim() == 2:
        return True
    return x.movedim(1, -1).is_contiguous() and not x.is_contiguous()


# ------------------------------------------------------------------ other patches, written out


def _gather(x: Tensor, patch: Geometry) -> Tensor:
    """Write the patches out: ``(N, I * taps, positions)``."""
    sizes = tuple(x.shape[2:])
    reach = patch.reach(sizes)
    padded = F.pad(x, flat_pads(reach)) if any(map(any, reach)) else x
    rows = x.new_empty(*x.shape[:2], patch.taps, *patch.output_size(sizes))
    for tap, window in enumerate(patch.windows(sizes)):
        rows[:, :, tap] = padded[(slice(None), slice(None), *window)]
    return rows.view(len(x), x.shape[1] * patch.taps, -1)


def _scatter(rows: Tensor, x: Tensor, patch: Geometry) -> Tensor:
    """Add patches up where they were read: the transpose of :func:`_gather`."""
    sizes = tuple(x.shape[2:])
    reach = patch.reach(sizes)
    padded = x.new_zeros(
        *x.shape[:2], *(low + n + high for n, (low, high) in zip(sizes, reach, strict=True))
    )
    by_tap = rows.view(*x.shape[:2], patch.taps, *patch.output_size(sizes))
    for tap, window in enumerate(patch.windows(sizes)):
        padded[(slice(None), slice(None), *window)] += by_tap[:, :, tap]
    inner = (slice(low, low + n) for n, (low, _) in zip(sizes, reach, strict=True))
    return padded[(slice(None), slice(None), *inner)].contiguous()
