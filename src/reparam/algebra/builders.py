"""Operators from the numbers that a layer stores: convolution, BN, pooling, scale, identity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reparam.algebra.affine_conv import AffineConv
from reparam.algebra.geometry import Geometry
from reparam.errors import InexactError
from reparam.reasons import Why

PerDim = int | Sequence[int]
Padding = int | str | Sequence[int | tuple[int, int]]


def conv_geometry(
    kernel_shape: Sequence[int],
    *,
    stride: PerDim = 1,
    padding: Padding = 0,
    dilation: PerDim = 1,
    groups: int = 1,
    bias: bool = False,
) -> Geometry:
    """Describe a framework convolution with zero padding on integer offsets.

    Args:
        kernel_shape: ``(O, I / groups, *kernel_size)``.
        stride: One number, or one per dimension.
        padding: One number, one per dimension, one ``(low, high)`` pair per dimension,
            ``"same"`` (stride 1; the odd zero goes after the input) or ``"valid"``.
        dilation: One number, or one per dimension.
        groups: Number of channel groups.
        bias: Whether there is one.

    """
    sizes = tuple(kernel_shape[2:])
    dims = len(sizes)
    dilations, strides = per_dim(dilation, dims), per_dim(stride, dims)
    pads = _pads(padding, sizes, dilations)
    return Geometry(
        kernel_shape[1] * groups,
        kernel_shape[0],
        groups,
        offsets=tuple(
            tuple(range(-low, step * (size - 1) - low + 1, step))
            for size, step, (low, _) in zip(sizes, dilations, pads, strict=True)
        ),
        stride=strides,
        extent=tuple(
            low + high - step * (size - 1) - 1
            for size, step, (low, high) in zip(sizes, dilations, pads, strict=True)
        ),
        bias=bias,
    )


def conv(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: PerDim = 1,
    padding: Padding = 0,
    dilation: PerDim = 1,
    groups: int = 1,
) -> AffineConv:
    """Make the operator of a convolution; see :func:`conv_geometry` for the arguments.

    >>> import torch
    >>> conv(torch.zeros(8, 4, 3, 3), padding=1, stride=2).geometry.offsets
    ((-1, 0, 1), (-1, 0, 1))

    """
    geometry = conv_geometry(
        weight.shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
    )
    return AffineConv(geometry, weight, bias)


def linear(weight: Tensor, bias: Tensor | None = None) -> AffineConv:
    """Make the operator of a linear layer: a convolution without spatial dimensions."""
    return conv(weight, bias)


def scale(factor: Tensor, shift: Tensor | None = None, *, dims: int = 0) -> AffineConv:
    """Make ``y[c] = factor[c] x[c] + shift[c]`` for tensors of shape ``(C,)``."""
    channels = factor.numel()
    geometry = Geometry.pointwise(
        channels, channels, dims=dims, groups=channels, bias=shift is not None
    )
    return AffineConv(geometry, factor.reshape(geometry.kernel_shape), shift)


def identity(channels: int, *, dims: int = 0) -> AffineConv:
    """Make the operator that returns its input: the unit matrix at offset 0."""
    return scale(torch.ones(channels, dtype=torch.float64), dims=dims)


def batch_norm(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dims: int = 0,
) -> AffineConv:
    r"""Make the operator of batch normalisation with running statistics.

    .. math:: y[c] = t[c]\, x[c] + (\beta[c] - \mu[c]\, t[c]), \qquad
              t[c] = \gamma[c] / \sqrt{\sigma^2[c] + \epsilon}

    All tensors have the shape ``(C,)``; arithmetic is float64.

    Raises:
        InexactError: A variance plus ``eps`` is not positive, so there is no scale.

    Source: RepVGG (arXiv 2101.03697), section 3.3, equation 3.

    >>> import torch
    >>> op = batch_norm(torch.tensor([1.0]), torch.tensor([4.0]), eps=0.0)
    >>> op.kernel.item(), op.bias.item()
    (0.5, -0.5)

    """
    spread = var.to(torch.float64) + eps
    if not bool((spread > 0).all()):
        worst = spread.min().item()
        raise InexactError(Why.NO_SCALE(found=worst, eps=eps))
    factor = spread.rsqrt() if weight is None else weight.to(torch.float64) / spread.sqrt()
    shift = -mean.to(torch.float64) * factor
    return scale(factor, shift if bias is None else bias.to(torch.float64) + shift, dims=dims)


def average_pool_geometry(
    channels: int, kernel: Sequence[int], stride: PerDim, padding: Padding, dilation: PerDim = 1
) -> Geometry:
    """Describe average pooling that counts its padding as zeros: a depthwise convolution."""
    return conv_geometry(
        (channels, 1, *kernel), stride=stride, padding=padding, dilation=dilation, groups=channels
    )


def average_pool(
    channels: int, kernel: Sequence[int], stride: PerDim, padding: Padding, dilation: PerDim = 1
) -> AffineConv:
    """Make the operator of average pooling: every tap is one over the number of taps."""
    geometry = average_pool_geometry(channels, kernel, stride, padding, dilation)
    value = 1.0 / geometry.taps
    return AffineConv(geometry, torch.full(geometry.kernel_shape, value, dtype=torch.float64))


def pad_geometry(channels: int, pads: Sequence[tuple[int, int]]) -> Geometry:
    """Describe zero padding by ``(low, high)`` per dimension: the identity, shifted."""
    return Geometry(
        channels,
        channels,
        channels,
        offsets=tuple((-low,) for low, _ in pads),
        stride=(1,) * len(pads),
        extent=tuple(low + high - 1 for low, high in pads),
    )


def zero_pad(channels: int, pads: Sequence[tuple[int, int]]) -> AffineConv:
    """Make the operator of zero padding; negative values crop."""
    geometry = pad_geometry(channels, pads)
    return AffineConv(geometry, torch.ones(geometry.kernel_shape, dtype=torch.float64))


def per_dim(value: PerDim, dims: int) -> tuple[int, ...]:
    """Spread one number over the dimensions, or check that there is one for each."""
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    if len(values) == 1:
        return values * dims
    if len(values) != dims:
        raise InexactError(f"got {len(values)} values {values}, needed one or {dims}")
    return values


def _pads(
    padding: Padding, sizes: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(sizes)
    if padding == "same":
        totals = [step * (size - 1) for size, step in zip(sizes, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if isinstance(padding, str):
        raise InexactError(f"padding {padding!r} is not known; needed numbers, 'same' or 'valid'")
    if isinstance(padding, int):
        return ((padding, padding),) * len(sizes)
    pads = [pair if isinstance(pair, tuple) else (int(pair), int(pair)) for pair in padding]
    if len(pads) == 1:
        pads *= len(sizes)
    if len(pads) != len(sizes):
        raise InexactError(f"got padding for {len(pads)} dimensions, needed {len(sizes)}")
    return tuple(pads)
