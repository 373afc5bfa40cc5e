"""Identify an affine module from its responses, where its code cannot be read.

Impulses are fed in float64, one input channel and one stride phase at a time; where they come out
is the kernel. The operator that is read off is then compared with the module on random inputs of
other sizes, interior and borders. That is evidence, not proof, so it is done on request only.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import AffineConv, Geometry
from reparam.frontends.torch.running import Arguments

_REACH = 16
"""Largest distance of a tap from the centre that is looked for."""
_BATCH = 64
_TOLERANCE = 1e-10


@torch.no_grad()
def identify(module: nn.Module, call: Arguments) -> AffineConv | str:
    """Find the operator that a module computes, or say why there is none.

    Args:
        module: A module with one tensor as input and one as output, in eval mode; it is copied.
        call: Arguments of one call, for the number of channels and dimensions.

    """
    tensors = [v for v in (*call[0], *call[1].values()) if isinstance(v, Tensor)]
    if len(tensors) != 1 or tensors[0].dim() < 3 or len(call[0]) + len(call[1]) != 1:
        return "it does not take one tensor with spatial dimensions"
    channels, dims = tensors[0].shape[1], tensors[0].dim() - 2
    try:
        box = _Box(copy.deepcopy(module).to(torch.float64).eval(), channels, dims)
        return box.identify()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"it does not run on impulses ({str(error).partition(chr(10))[0]})"


class _Box:
    def __init__(self, module: nn.Module, channels: int, dims: int) -> None:
        self._module = module
        self._channels = channels
        self._dims = dims

    def identify(self) -> AffineConv | str:
        """Read stride, extent, bias and kernel off the responses and check them."""
        shape = self._strides_and_extents()
        if isinstance(shape, str):
            return shape
        stride, extent = shape
        constant = self._run(self._zeros(self._size(stride)))
        bias = constant.flatten(2)[0, :, 0]
        offset = constant - bias.view(1, -1, *(1,) * self._dims)
        if float(offset.abs().max()) > _TOLERANCE * (1 + float(bias.abs().max())):
            return "its output for a zero input differs between border and interior"
        op = self._kernel(stride, extent, constant, bias)
        error = self._compare(op)
        if not error <= _TOLERANCE:
            return f"it is not one convolution: random inputs differ by {error:.1e}"
        return op

    def _strides_and_extents(self) -> tuple[tuple[int, ...], tuple[int, ...]] | str:
        """Find per dimension ``m = (n + e) // s + 1`` from the sizes of outputs."""
        strides, extents = [], []
        for dim in range(self._dims):
            sizes = []
            for n in range(40, 60):
                size = [40] * self._dims
                size[dim] = n
                sizes.append(self._run(self._zeros(tuple(size), batch=1)).shape[2 + dim])
            fits = [
                (step, extent)
                for step in range(1, 9)
                for extent in range(-2 * _REACH, 2 * _REACH)
                if all(
                    (n + extent) // step + 1 == m for n, m in zip(range(40, 60), sizes, strict=True)
                )
            ]
            if not fits:
                return "the size of its output is not that of a convolution"
            strides.append(fits[0][0])
            extents.append(fits[0][1])
        return tuple(strides), tuple(extents)

    def _kernel(
        self, stride: tuple[int, ...], extent: tuple[int, ...], constant: Tensor, bias: Tensor
    ) -> AffineConv:
        size = self._size(stride)
        offsets = tuple(tuple(range(-_REACH, _REACH + 1)) for _ in stride)
        kernel = torch.zeros(
            bias.numel(), self._channels, *(len(t) for t in offsets), dtype=torch.float64
        )
        centre = [n // 2 // s * s for n, s in zip(size, stride, strict=True)]
        for phase in itertools.product(*(range(s) for s in stride)):
            at = [c + p for c, p in zip(centre, phase, strict=True)]
            response = self._impulses(size, at) - constant
            # The response at output position p belongs to the tap at - s p.
            for index in itertools.product(
                *(self._window(a, s) for a, s in zip(at, stride, strict=True))
            ):
                taps = [a - s * p for a, s, p in zip(at, stride, index, strict=True)]
                where = tuple(t + _REACH for t in taps)
                here: tuple[Any, ...] = (slice(None), slice(None), *where)
                there: tuple[Any, ...] = (..., *index)
                kernel[here] = response[there].T
        geometry = Geometry(self._channels, bias.numel(), 1, offsets, stride, extent, bias=True)
        return self._clean(AffineConv(geometry, kernel, bias))

    @staticmethod
    def _clean(op: AffineConv) -> AffineConv:
        """Drop rounding noise where there is no tap, then recover support and groups."""
        scale = float(op.kernel.abs().max())
        kernel = torch.where(op.kernel.abs() > 1e-13 * scale, op.kernel, 0.0)
        bias = op.bias
        if bias is not None and float(bias.abs().max()) == 0.0:
            bias = None
        geometry = replace(op.geometry, bias=bias is not None)
        return AffineConv(geometry, kernel, bias).trim().split_groups()

    @staticmethod
    def _window(at: int, step: int) -> range:
        """Output positions that see an impulse at ``at`` within the reach."""
        return range(-(-(at - _REACH) // step), (at + _REACH) // step + 1)

    def _impulses(self, size: tuple[int, ...], at: list[int]) -> Tensor:
        """Responses to an impulse in each channel: shape ``(I, O, *output size)``."""
        parts = []
        for start in range(0, self._channels, _BATCH):
            count = min(_BATCH, self._channels - start)
            x = self._zeros(size, batch=count)
            for k in range(count):
                spot: tuple[Any, ...] = (k, start + k, *at)
                x[spot] = 1.0
            parts.append(self._run(x))
        return torch.cat(parts)

    def _compare(self, op: AffineConv) -> float:
        generator = torch.Generator().manual_seed(0)
        worst = 0.0
        for size in (17, 24):
            shape = (2, self._channels, *(size + k for k in range(self._dims)))
            x = torch.randn(shape, dtype=torch.float64, generator=generator)
            expected = self._run(x)
            found = op(x)
            if found.shape != expected.shape:
                return float("inf")
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
        return worst

    def _run(self, x: Tensor) -> Tensor:
        result: Tensor = self._module(x)
        return result

    def _size(self, stride: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(4 * _REACH + 4 * s for s in stride)

    def _zeros(self, size: tuple[int, ...], batch: int = 1) -> Tensor:
        return torch.zeros(batch, self._channels, *size, dtype=torch.float64)
