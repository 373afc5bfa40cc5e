r"""Mean and covariance of the patches of a batch, and their gradients.

A branch that is linear in the patch :math:`p` has the batch mean :math:`w^\top\mu` and the batch
variance :math:`w^\top\Sigma\,w`, with

.. math:: \mu = \tfrac1n \sum p, \qquad \Sigma = \tfrac1n \sum (p - \mu)(p - \mu)^\top

over the ``n`` positions of the batch that the branch computes. Patches are those of one group of
channels, ordered by channel, then by tap, like the rows of a kernel ``(O, I / groups, *taps)``.

Three ways lead there. Single taps need one matrix product. Depthwise patches at stride 1 are
Toeplitz but for borders (:mod:`reparam.narrowing.toeplitz`). All others are gathered. Each keeps
the input for the backward pass and nothing of its size besides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from reparam.algebra import Geometry, flat_pads
from reparam.narrowing.toeplitz import Toeplitz

__all__ = ["gathers", "is_single_tap", "is_toeplitz", "moments"]


def moments(x: Tensor, patch: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean and the covariance of the patches that an operator reads.

    Args:
        x: Shape ``(N, I, *spatial)``; without spatial dimensions ``(N, I)``.
        patch: Groups, offsets, stride and extent; the number of outputs is of no account.

    Returns:
        ``x`` itself, for what reads it next, so that its gradient and that of the moments meet in
        one tensor; the mean, shape ``(groups, D)``; and the covariance, shape ``(groups, D, D)``,
        where ``D`` is ``I / groups`` times the taps. Both are float32, or float64 where ``x`` is.

    """
    way: type[Function] = _Gathered
    if is_single_tap(patch):
        way = _Single
    elif is_toeplitz(patch):
        way = _Depthwise
    same, mean, covariance = way.apply(x, patch)
    return same, mean, covariance


def is_single_tap(patch: Geometry) -> bool:
    """Whether every patch is one position, and each position of the input is one patch."""
    return patch.is_pointwise


def is_toeplitz(patch: Geometry) -> bool:
    """Whether the products of taps are an autocorrelation: depthwise, dense taps, stride 1."""
    return (
        patch.dims in {1, 2}
        and patch.groups == patch.in_channels
        and all(step == 1 for step in patch.stride)
        and all(
            taps == tuple(range(taps[0], taps[-1] + 1)) and taps[0] <= 0 <= taps[-1]
            for taps in patch.offsets
        )
    )


def gathers(patch: Geometry) -> bool:
    """Whether the patches have to be written out."""
    return not is_single_tap(patch) and not is_toeplitz(patch)


class _Moments(Function):
    r"""What the three ways share: their gradients as one map of the patches.

    With :math:`S = d\Sigma + d\Sigma^\top`, a patch gets the gradient
    :math:`(S\\,p + d\\mu - S\\,\\mu) / n`.
    """

    @staticmethod
    def keep(ctx: Any, x: Tensor, patch: Geometry, mean: Tensor, count: int) -> None:
        ctx.save_for_backward(x, mean)
        ctx.patch, ctx.count = patch, count
        ctx.set_materialize_grads(False)

    @staticmethod
    def map_of(
        ctx: Any, to_mean: Tensor | None, to_covariance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The matrix ``(groups, D, D)`` and the shift ``(groups, D)`` of that map."""
        _, mean = ctx.saved_tensors
        if to_covariance is None:
            matrix = mean.new_zeros(*mean.shape, mean.shape[1])
        else:
            matrix = (to_covariance + to_covariance.mT) / ctx.count
        shift = -(matrix @ mean.unsqueeze(2)).squeeze(2)
        return matrix, shift if to_mean is None else shift + to_mean / ctx.count


def _statistics_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _plain(x: Tensor) -> Any:
    """Leave the types of a calculation alone under autocast."""
    return torch.autocast(x.device.type, enabled=False)


class _Single(_Moments):
    """Single taps: one product of the centred input with itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, patch: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        with _plain(x):
            rows = x.movedim(1, 0).unflatten(0, (patch.groups, -1))
            positions = tuple(range(2, rows.dim()))
            mean = rows.mean(positions, dtype=_statistics_type(x))
            # Into one block of memory, so that one product takes all images.
            centred = rows.new_empty(rows.shape, dtype=mean.dtype)
            torch.sub(rows, mean[(..., *(None,) * len(positions))], out=centred)
            flat = centred.flatten(2)
            count = flat.shape[2]
            covariance = flat @ flat.mT / count
        _Single.keep(ctx, x, patch, mean, count)
        return x.view_as(x), mean, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        x, _ = ctx.saved_tensors
        matrix, shift = _Single.map_of(ctx, *grads[1:])
        groups, width = shift.shape
        total = _or_zeros(grads[0], x)
        # Images as batches of a product for each group; without positions all images are one.
        images = x.t().unsqueeze(0) if x.dim() == 2 else x.flatten(2)
        sums = total.t().unsqueeze(0) if x.dim() == 2 else total.flatten(2)
        count, _, positions = images.shape
        factor = matrix.to(x.dtype).expand(count, groups, width, width).reshape(-1, width, width)
        sums = torch.baddbmm(
            sums.reshape(-1, width, positions), factor, images.reshape(-1, width, positions)
        )
        sums = sums.view(images.shape).add_(shift.to(x.dtype).view(-1, 1))
        return (sums[0].t() if x.dim() == 2 else sums.view(x.shape)), None


class _Depthwise(_Moments):
    """Depthwise patches at stride 1, by the autocorrelation of the image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, patch: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        with _plain(x):
            toeplitz = Toeplitz.of(patch, x)
            mean, covariance = toeplitz.moments(x, _statistics_type(x))
        _Depthwise.keep(ctx, x, patch, mean, toeplitz.count)
        return x.view_as(x), mean, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        x, _ = ctx.saved_tensors
        matrix, shift = _Depthwise.map_of(ctx, *grads[1:])
        with _plain(x):
            part = Toeplitz.of(ctx.patch, x).gradient(x, matrix.to(x.dtype), shift.to(x.dtype))
        return (part if grads[0] is None else part.add_(grads[0])), None


class _Gathered(_Moments):
    """Any patches, written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, patch: Geometry) -> tuple[Tensor, Tensor, Tensor]:
        with _plain(x):
            rows = _gather(x, patch, _statistics_type(x))
            mean = rows.mean(2)
            rows -= mean.unsqueeze(2)
            covariance = rows @ rows.mT / rows.shape[2]
        _Gathered.keep(ctx, x, patch, mean, rows.shape[2])
        return x.view_as(x), mean, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        x, _ = ctx.saved_tensors
        matrix, shift = _Gathered.map_of(ctx, *grads[1:])
        rows = _gather(x, ctx.patch, x.dtype)
        rows = torch.baddbmm(shift.to(x.dtype).unsqueeze(2), matrix.to(x.dtype), rows)
        part = _scatter(rows, x, ctx.patch)
        return (part if grads[0] is None else part.add_(grads[0])), None


def _or_zeros(gradient: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if gradient is None else gradient


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
