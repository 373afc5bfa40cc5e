"""Load the weights of layers as operators, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reparam.algebra import AffineConv, Geometry, Rows


def weight_loader(
    geometry: Geometry, read: Callable[[], tuple[Tensor, Tensor | None]]
) -> Callable[[Rows | None], AffineConv]:
    """Load an operator from weight and bias, or only some rows of it."""

    def load(rows: Rows | None) -> AffineConv:
        weight, bias = read()
        if rows is None:
            return AffineConv(geometry, weight, bias)
        if geometry.groups > 1:
            return AffineConv(geometry, weight, bias).rows(*rows)
        part = slice(*rows)
        return AffineConv(
            Geometry(
                geometry.in_channels, rows[1] - rows[0], 1, geometry.offsets, geometry.stride,
                geometry.extent, geometry.bias,
            ),
            weight[part],
            None if bias is None else bias[part],
        )  # fmt: skip

    return load


def all_finite(tensors: set[Tensor]) -> bool:
    """Whether all numbers are finite; a sum is enough, it is not finite either if one is not."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.device.type != "meta":
            total = tensor.detach().sum(
                dtype=torch.float32 if tensor.dtype != torch.float64 else None
            )
            if not bool(torch.isfinite(total)) and not bool(torch.isfinite(tensor).all()):
                return False
    return True
