"""Layers whose output channels can be rescaled although they are no ordinary convolutions.

A transposed convolution, one with reflected padding, or a subclass with its own forward (TF's
dynamic padding) multiplies *something read from its input* by its weight. Whatever that is, a scale
and shift behind it can go into weight and bias. To the planner such a layer is a pointwise operator
of that something, which is a value that nothing else reads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor, nn

from reparam.algebra import Geometry, conv_geometry
from reparam.frontends.kinds import AnyConv, AnyNorm, AnyTransposedConv


def is_hosted(module: nn.Module) -> bool:
    """Whether a module is a convolution of any kind with a weight of its own."""
    return isinstance(module, AnyConv) and isinstance(module.weight, Tensor)


def hosted_geometry(module: Any) -> Geometry:
    """Describe the layer as a pointwise operator of what it reads from its input."""
    width = module.weight.numel() // module.out_channels
    return Geometry.pointwise(
        width * module.groups, module.out_channels, dims=module.weight.dim() - 2,
        groups=module.groups, bias=module.bias is not None,
    )  # fmt: skip


def weight_as_rows(module: Any, weight: Tensor) -> Tensor:
    """Write a weight with one row per output channel: shape ``(O, I k / groups, 1, ...)``."""
    if isinstance(module, AnyTransposedConv):
        rows = rows_of_transposed(weight, module.groups)
    else:
        rows = weight.reshape(module.out_channels, -1)
    shaped: Tensor = rows.reshape(*rows.shape, *(1,) * (weight.dim() - 2))
    return shaped


def rows_of_transposed(weight: Tensor, groups: int) -> Tensor:
    """Write the weight of a transposed convolution with one row per output channel.

    Args:
        weight: Shape ``(I, O / groups, *kernel_size)``.
        groups: Number of channel groups.

    Returns:
        Shape ``(O, I / groups * taps)``.

    """
    # (I, O/g, k) -> (g, I/g, O/g, k) -> (g, O/g, I/g, k)
    grouped = weight.flatten(2).unflatten(0, (groups, -1)).transpose(1, 2)
    rows: Tensor = grouped.reshape(groups * weight.shape[1], -1)
    return rows


def convolution_of(
    shape: Sequence[int], pads: Sequence[tuple[int, int]], dilation: Sequence[int], groups: int, *,
    bias: bool,
) -> Geometry:  # fmt: skip
    r"""Describe a transposed convolution of stride 1, which is a convolution with a turned kernel.

    .. math:: y[o, p] = \sum_{i, k} K[i, o, k]\, x[i, p + l - d k]

    so that its taps lie at :math:`l - d k`: a padding of :math:`d (k_\max) - l` zeros, where
    :math:`l` is what it leaves out.

    Args:
        shape: That of its weight, ``(I, O / groups, *kernel_size)``.
        pads: How much it leaves out at both ends of each dimension.
        dilation: Per dimension.
        groups: Number of channel groups.
        bias: Whether there is one.

    """
    spans = [step * (size - 1) for step, size in zip(dilation, shape[2:], strict=True)]
    padding = [(s - low, s - high) for s, (low, high) in zip(spans, pads, strict=True)]
    turned = (shape[1] * groups, shape[0] // groups, *shape[2:])
    return conv_geometry(turned, padding=padding, dilation=dilation, groups=groups, bias=bias)


def turned_kernel(weight: Tensor, groups: int) -> Tensor:
    """Turn the weight of a transposed convolution into that of :func:`convolution_of`."""
    rows = rows_of_transposed(weight, groups)
    turned = rows.reshape(rows.shape[0], -1, *weight.shape[2:])
    return turned.flip(tuple(range(2, weight.dim())))


def spread_of_transposed(shape: Sequence[int]) -> tuple[int, ...]:
    """For each column of :func:`rows_of_transposed`, in all groups, the input channel it meets."""
    return tuple(channel for channel in range(shape[0]) for _ in range(math.prod(shape[2:])))


def window_of_transposed(
    shape: Sequence[int], strides: Sequence[int], pads: Sequence[tuple[int, int]],
    more: Sequence[int], dilation: Sequence[int], groups: int,
) -> tuple[Hashable, tuple[tuple[int, ...], ...]]:  # fmt: skip
    r"""What transposed convolutions of one value have in common that are one together.

    .. math:: y[o, s p + d k - l] \mathrel{+}= K[i, o, k]\, x[i, p]

    so that two of them with one stride :math:`s`, whose outputs are as large, are one with the taps
    of both: at the places :math:`d k - l`, where :math:`l` is what each leaves out in front.

    Args:
        shape: That of the weight, ``(I, O / groups, *kernel_size)``.
        strides: Per dimension.
        pads: How much it leaves out at both ends of each dimension.
        more: How much is added at the end (output padding).
        dilation: Per dimension.
        groups: Number of channel groups.

    """
    spans = [step * (size - 1) for step, size in zip(dilation, shape[2:], strict=True)]
    sizes = tuple(
        span + extra - low - high
        for span, extra, (low, high) in zip(spans, more, pads, strict=True)
    )
    taps = tuple(
        tuple(step * k - low for k in range(size))
        for step, size, (low, _) in zip(dilation, shape[2:], pads, strict=True)
    )
    return (shape[0], groups, tuple(strides), sizes), taps


def transposed_of_rows(rows: Tensor, groups: int, kernel_size: Sequence[int]) -> Tensor:
    """Undo :func:`rows_of_transposed`."""
    shape = (groups, rows.shape[0] // groups, -1, *kernel_size)
    weight: Tensor = rows.reshape(shape).transpose(1, 2).flatten(0, 1)
    return weight


def rebuilt(module: Any, rows: Tensor, bias: Tensor | None) -> nn.Module:
    """Copy a layer or norm with another weight, given as rows, and bias; everything else stays."""
    if isinstance(module, AnyTransposedConv):
        weight = transposed_of_rows(rows, module.groups, module.kernel_size)
    else:
        weight = rows if isinstance(module, AnyNorm) else rows.reshape(module.weight.shape)
    twin: nn.Module = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        vars(twin)[table] = dict(vars(module)[table])
    for name, buffer in module.named_buffers(recurse=False):
        twin.register_buffer(name, buffer.clone())
    twin.register_parameter("weight", nn.Parameter(weight.contiguous()))
    twin.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    return twin
