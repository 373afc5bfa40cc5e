"""Kernels while training: put on a common grid, composed, added; in the type they are given in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reparam import algebra
from reparam.algebra import AffineConv, Geometry

__all__ = ["Affine", "composed", "fitted", "same_taps"]


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
        return replace(self, terms=terms, bias=None if self.bias is None else self.bias * factor)

    def shifted(self, shift: Tensor | None) -> Affine:
        """The value plus one number for each output channel."""
        if shift is None:
            return self
        return replace(self, bias=shift if self.bias is None else self.bias + shift)

    def kernel(self, grid: Geometry, like: Tensor) -> Tensor:
        """The kernel on the taps and groups of ``grid``: ``(O, I / groups, *taps)``."""
        total: Tensor | None = None
        for scale, kernel, geometry in self.terms:
            part = fitted(kernel, geometry, grid, like)
            if isinstance(scale, Tensor):
                scale = scale.view(-1, *(1,) * (part.dim() - 1))  # noqa: PLW2901 (its shape alone)
            if scale is not None:
                part = part * scale
            total = part if total is None else total + part
        assert total is not None  # noqa: S101 (a value has at least one term)
        return total


def same_taps(first: Geometry, second: Geometry) -> bool:
    """Whether the kernels of two operators are tensors of one layout."""
    return first.offsets == second.offsets and first.groups == second.groups


def fitted(kernel: Tensor | None, have: Geometry, want: Geometry, like: Tensor) -> Tensor:
    """Write a kernel, or the identity where it is None, on the taps and groups of ``want``."""
    if kernel is not None and same_taps(have, want):
        return kernel
    if kernel is None:
        op = algebra.identity(have.in_channels, dims=want.dims)
        op = AffineConv(op.geometry, op.kernel.to(like.device))
    else:
        op = AffineConv(replace(have, bias=False), kernel)
    grid = replace(want, bias=False)
    zeros = torch.zeros(grid.kernel_shape, dtype=torch.float64, device=like.device)
    return (AffineConv(grid, zeros) + op).kernel.to(like.dtype)


def composed(weight: Tensor, bias: Tensor | None, layer: Geometry, inner: Affine) -> Affine:
    """Put a layer behind a value."""
    kernel = inner.kernel(inner.geometry, weight)
    op = AffineConv(layer, weight, bias) @ AffineConv(inner.geometry, kernel, inner.bias)
    shift = None if op.bias is None else op.bias.to(kernel.dtype)
    return Affine(op.geometry, ((None, op.kernel.to(kernel.dtype), op.geometry),), shift)
