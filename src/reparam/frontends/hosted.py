"""Layers whose output channels can be rescaled although they are no ordinary convolutions.

A transposed convolution, one with reflected padding, or a subclass with its own forward (TF's
dynamic padding) multiplies *something read from its input* by its weight. Whatever that is, a scale
and shift behind it can go into weight and bias. To the planner such a layer is a pointwise operator
of that something, which is a value that nothing else reads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from reparam.algebra import Geometry
from reparam.frontends.kinds import AnyConv, AnyTransposedConv

__all__ = [
    "hosted_geometry",
    "is_hosted",
    "rebuilt",
    "rows_of_transposed",
    "transposed_of_rows",
    "weight_as_rows",
]


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


def transposed_of_rows(rows: Tensor, groups: int, kernel_size: Sequence[int]) -> Tensor:
    """Undo :func:`rows_of_transposed`."""
    shape = (groups, rows.shape[0] // groups, -1, *kernel_size)
    weight: Tensor = rows.reshape(shape).transpose(1, 2).flatten(0, 1)
    return weight


def rebuilt(module: Any, rows: Tensor, bias: Tensor | None) -> nn.Module:
    """Copy a layer with another weight, given as rows, and bias; everything else stays."""
    if isinstance(module, AnyTransposedConv):
        weight = transposed_of_rows(rows, module.groups, module.kernel_size)
    else:
        weight = rows.reshape(module.weight.shape)
    twin: nn.Module = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        vars(twin)[table] = dict(vars(module)[table])
    twin.register_parameter("weight", nn.Parameter(weight.contiguous()))
    twin.register_parameter("bias", None if bias is None else nn.Parameter(bias))
    return twin
