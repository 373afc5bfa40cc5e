"""From an operator back to the arguments of the cheapest framework layer that computes it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache, partial

from torch import Tensor
from torch.nn import functional as F

from reparam.algebra.affine_conv import AffineConv
from reparam.algebra.direct import Positions, Run, convolving, flat_pads
from reparam.algebra.geometry import Geometry


@dataclass(frozen=True, slots=True)
class LayerArguments:
    """What a convolution (or, without dimensions, a linear layer) has to be called with.

    Attributes:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Per dimension.
        stride: Per dimension.
        padding: Zeros on both sides per dimension, or ``"same"``.
        dilation: Per dimension.
        groups: Number of channel groups.
        bias: Whether there is one.
        pre_pad: ``(low, high)`` zeros per dimension to add before the layer, where the layer's
            own symmetric padding cannot express them; else None.

    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    pre_pad: tuple[tuple[int, int], ...] | None = None

    @property
    def dims(self) -> int:
        """Number of spatial dimensions; 0 stands for a linear layer."""
        return len(self.kernel_size)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer on ``x`` with the given numbers."""
        if self.dims == 0:
            return F.linear(x, weight, bias)
        pads: tuple[int, ...] = tuple(low for low, _ in self.pads)
        if self.pads != tuple((low, low) for low in pads) or min(pads) < 0:
            x = F.pad(x, flat_pads(self.pads))
            pads = (0,) * self.dims
        function = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        return function(x, weight, bias, self.stride, pads, self.dilation, self.groups)

    def on(self, x: Tensor, at: Positions | None = None) -> Run:
        """Fix the input, to run the layer with many kernels; see :func:`direct.convolving`."""
        if self.dims == 0:
            return partial(F.linear, x)
        return convolving(
            x, self.kernel_size, self.stride, self.pads, self.dilation, self.groups, at
        )

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Zeros before and behind the input, per dimension."""
        if isinstance(self.padding, str):
            # Torch would pad likewise, with a warning where the two sides differ.
            spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple((span // 2, span - span // 2) for span in spans)
        return self.pre_pad or tuple((zeros, zeros) for zeros in self.padding)


@lru_cache(maxsize=4096)
def layer_arguments(geometry: Geometry) -> tuple[LayerArguments, Geometry]:
    """Recover kernel size, dilation and padding from the offsets.

    Returns:
        The arguments, and the geometry whose kernel tensor is the layer's weight: that of the
        operator, filled up with zero taps where its offsets are not equally spaced or do not
        reach the first position that the layer must read.

    """
    grids, dilations = (
        zip(*(_grid(geometry, dim) for dim in range(geometry.dims)), strict=True)
        if geometry.dims
        else ((), ())
    )
    full = Geometry(
        geometry.in_channels,
        geometry.out_channels,
        geometry.groups if geometry.dims else 1,
        grids,
        geometry.stride,
        geometry.extent,
        geometry.bias,
    )
    padding, pre_pad = _layer_padding(full, dilations)
    arguments = LayerArguments(
        full.in_channels,
        full.out_channels,
        tuple(len(taps) for taps in grids),
        full.stride,
        padding,
        dilations,
        full.groups,
        full.bias,
        pre_pad,
    )
    return arguments, full


def lower(op: AffineConv) -> tuple[LayerArguments, Tensor, Tensor | None]:
    """Lower an operator to layer arguments, weight and bias, all exact, in float64.

    >>> import torch
    >>> from reparam import algebra
    >>> op = algebra.conv(torch.ones(2, 1, 3), padding=2, dilation=2, groups=2)
    >>> arguments, weight, _ = lower(op)
    >>> arguments.dilation, arguments.padding, tuple(weight.shape)
    ((2,), (2,), (2, 1, 3))

    """
    arguments, full = layer_arguments(op.geometry)
    kernel = op.regroup(full.groups)._embed(full)  # noqa: SLF001 (same room)
    return arguments, kernel, op.bias


def _grid(geometry: Geometry, dim: int) -> tuple[tuple[int, ...], int]:
    """Equally spaced offsets that cover those of ``dim``, and their spacing."""
    taps = set(geometry.offsets[dim])
    # A layer cannot start after the first input position nor end before the last one that the
    # output size implies, so a kernel that does is filled up with zero taps.
    low, high = min(taps), max(taps)
    if low > 0:
        taps.add(0)
    if high < -1 - geometry.extent[dim]:
        taps.add(-1 - geometry.extent[dim])
    ordered = sorted(taps)
    gaps = [b - a for a, b in itertools.pairwise(ordered)]
    step = math.gcd(*gaps) or 1
    return tuple(range(ordered[0], ordered[-1] + 1, step)), step


def _layer_padding(
    geometry: Geometry, dilation: tuple[int, ...]
) -> tuple[tuple[int, ...] | str, tuple[tuple[int, int], ...] | None]:
    pads = geometry.padding()
    if all(low == high for low, high in pads):
        return tuple(low for low, _ in pads), None
    spans = [step * (len(taps) - 1) for taps, step in zip(geometry.offsets, dilation, strict=True)]
    same = tuple((span // 2, span - span // 2) for span in spans)
    if pads == same and all(step == 1 for step in geometry.stride):
        return "same", None
    return (0,) * geometry.dims, pads
