"""Kernels while training: put on a common grid, composed, added; in the type they are given in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from reparam.algebra import AffineConv, Geometry

Places = tuple[slice, ...]
"""Where the taps of a kernel are among those of a larger one, for each dimension."""


_ALL = slice(None)


@dataclass(frozen=True)
class Affine:
    """A value that is a convolution of the block's input: ``sum_j scale_j * kernel_j`` and a bias.

    Attributes:
        geometry: The convolution.
        terms: Scales ``(O,)`` or None, each with a kernel and its geometry; the kernel of the
            input itself is None.
        bias: Shape ``(O,)``, or None.

    """

    geometry: Geometry
    terms: tuple[tuple[Tensor | float | None, Tensor | None, Geometry], ...]
    bias: Tensor | None = None

    @property
    def is_input(self) -> bool:
        """Whether it is the block's input as it is."""
        return self.bias is None and all(s is None and k is None for s, k, _ in self.terms)

    def scaled(self, factor: Tensor | float) -> Affine:
        """The value times a number, or one for each output channel."""
        terms = tuple((factor if s is None else s * factor, k, g) for s, k, g in self.terms)
        bias = None if self.bias is None else self.bias * factor
        return Affine(self.geometry, terms, bias)

    def shifted(self, shift: Tensor | None) -> Affine:
        """The value plus one number for each output channel."""
        if shift is None:
            return self
        bias = shift if self.bias is None else self.bias + shift
        return Affine(self.geometry, self.terms, bias)

    def kernel(self, grid: Geometry, like: Tensor) -> Tensor:
        """The kernel on the taps and groups of ``grid``: ``(O, I / groups, *taps)``."""
        if len(self.terms) == 1:
            scale, kernel, geometry = self.terms[0]
            if scale is None and kernel is not None and _same_taps(geometry, grid):
                return kernel
        places, kernels, scales = [], [], []
        for scale, kernel, geometry in self.terms:
            where, what = fitted(kernel, geometry, grid)
            places.append(where)
            kernels.append(what)
            scales.append(scale)
        total: Tensor = _Sum.apply(grid, like, places, *kernels, *scales)
        return total


def fitted(kernel: Tensor | None, have: Geometry, want: Geometry) -> tuple[Places, Tensor | None]:
    """Find where a kernel is in one of the taps and groups of ``want``, or write it anew there."""
    if kernel is None:
        return have.in_dims(want.dims).places_in(want) or _at_centre(want), None
    if have.groups == want.groups:
        places = have.places_in(want)
        if places is not None:
            return places, kernel
    inner = AffineConv(replace(have, bias=False), kernel).regroup(want.groups)
    zeros = torch.zeros(want.kernel_shape, dtype=torch.float64, device=kernel.device)
    whole = AffineConv(replace(want, bias=False), zeros) + inner
    return (slice(None),) * want.dims, whole.kernel.to(kernel.dtype)


def _same_taps(first: Geometry, second: Geometry) -> bool:
    return first.offsets == second.offsets and first.groups == second.groups


def _at_centre(want: Geometry) -> Places:
    at = (taps.index(0) for taps in want.offsets)
    return tuple(slice(place, place + 1) for place in at)


def diagonal_of(kernel: Tensor, groups: int, places: Places) -> Tensor:
    """What a kernel multiplies each channel's own number with: a view, ``(groups, width)``."""
    width = kernel.shape[1]
    square = kernel.unflatten(0, (groups, width))
    at = tuple(place.start for place in places)
    found: Tensor = square[(_ALL, _ALL, _ALL, *at)].diagonal(dim1=1, dim2=2)
    return found


class _Sum(Function):
    """A sum of kernels, each times a number for each output channel."""

    @staticmethod
    def forward(
        ctx: Any, grid: Geometry, like: Tensor, places: list[Places], *tensors: Any
    ) -> Tensor:
        kernels, scales = tensors[: len(places)], tensors[len(places) :]
        total = like.new_zeros(grid.kernel_shape)
        for where, kernel, scale in zip(places, kernels, scales, strict=True):
            if kernel is None:
                part = diagonal_of(total, grid.groups, where)
                part += _by_row(scale, part) if isinstance(scale, Tensor) else scale or 1.0
                continue
            part = total[(_ALL, _ALL, *where)]
            if isinstance(scale, Tensor):
                part.addcmul_(kernel, _by_channel(scale, kernel))
            else:
                part.add_(kernel, alpha=1.0 if scale is None else scale)
        numbers = [None if isinstance(scale, Tensor) else scale for scale in scales]
        ctx.save_for_backward(*kernels, *(s if isinstance(s, Tensor) else None for s in scales))
        ctx.grid, ctx.places, ctx.numbers = grid, places, numbers
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: checkpointing computes it anew at each reading
        kernels, scales = saved[: len(ctx.places)], saved[len(ctx.places) :]
        to_kernels: list[Tensor | None] = []
        to_scales: list[Tensor | None] = []
        for where, kernel, scale, number in zip(
            ctx.places, kernels, scales, ctx.numbers, strict=True
        ):
            if kernel is None:
                part = diagonal_of(grads[0], ctx.grid.groups, where)
                to_kernels.append(None)
                to_scales.append(None if scale is None else part.flatten())
                continue
            part = grads[0][(_ALL, _ALL, *where)]
            if scale is None:
                to_kernels.append(part if number is None else part * number)
                to_scales.append(None)
                continue
            to_kernels.append(part * _by_channel(scale, kernel))
            to_scales.append((part * kernel).flatten(1).sum(1))
        return None, None, None, *to_kernels, *to_scales


def _by_channel(scale: Tensor, kernel: Tensor) -> Tensor:
    return scale.view(-1, *(1,) * (kernel.dim() - 1))


def _by_row(scale: Tensor, rows: Tensor) -> Tensor:
    return scale.view(rows.shape)


def composed(weight: Tensor, bias: Tensor | None, layer: Geometry, inner: Affine) -> Affine:
    """Put a layer behind a value."""
    kernel = inner.kernel(inner.geometry, weight)
    op = AffineConv(layer, weight, bias) @ AffineConv(inner.geometry, kernel, inner.bias)
    shift = None if op.bias is None else op.bias.to(kernel.dtype)
    return Affine(op.geometry, ((None, op.kernel.to(kernel.dtype), op.geometry),), shift)
