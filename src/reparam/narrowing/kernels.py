"""Kernels while training: put on a common grid, composed, added; in the type they are given in."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

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
    if kernel is None:
        kernel = _identity(have.in_channels, want, like)
    elif same_taps(have, want):
        return kernel
    elif have.groups != want.groups:
        kernel = AffineConv(replace(have, bias=False), kernel).regroup(want.groups).kernel
        kernel = kernel.to(like.dtype)
    pads = _zeros_around(have, want)
    if pads is not None:
        return F.pad(kernel, pads) if any(pads) else kernel
    zeros = torch.zeros(want.kernel_shape, dtype=torch.float64, device=like.device)
    grid, inner = replace(want, bias=False), replace(have, groups=want.groups, bias=False)
    return (AffineConv(grid, zeros) + AffineConv(inner, kernel)).kernel.to(like.dtype)


def _identity(channels: int, want: Geometry, like: Tensor) -> Tensor:
    """The kernel that returns its input, with the groups of ``want`` and a single tap."""
    width = channels // want.groups
    eye = torch.eye(width, dtype=like.dtype, device=like.device).repeat(want.groups, 1)
    return eye.view(channels, width, *(1,) * want.dims)


@functools.lru_cache(maxsize=4096)
def _zeros_around(have: Geometry, want: Geometry) -> tuple[int, ...] | None:
    """Zeros before and after the taps of one kernel in another, or None where some lie between."""
    pads: list[int] = []
    for inner, outer in zip(have.offsets[::-1], want.offsets[::-1], strict=True):
        start = outer.index(inner[0])
        if outer[start : start + len(inner)] != inner:
            return None
        pads += [start, len(outer) - start - len(inner)]
    return tuple(pads)


def composed(weight: Tensor, bias: Tensor | None, layer: Geometry, inner: Affine) -> Affine:
    """Put a layer behind a value."""
    kernel = inner.kernel(inner.geometry, weight)
    op = AffineConv(layer, weight, bias) @ AffineConv(inner.geometry, kernel, inner.bias)
    shift = None if op.bias is None else op.bias.to(kernel.dtype)
    return Affine(op.geometry, ((None, op.kernel.to(kernel.dtype), op.geometry),), shift)
