"""Every operation that a network in normal form may hold, as what it computes in PyTorch.

Front ends translate the operators of their format into these and into affine maps; composite ones
are spelt out (``silu(x)`` is ``x * sigmoid(x)``), so that a fused operator in one file equals its
parts in another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _max_pool(
    x: Tensor, *, kernel: Any, stride: Any, pads: Any, dilation: Any, ceil: bool
) -> Tensor:
    # Padding that differs between the sides is one of minus infinity before the pooling.
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    flat = [side for pair in reversed(pads) for side in pair]
    padded = F.pad(x, flat, value=float("-inf")) if any(flat) else x
    result: Tensor = function(padded, kernel, stride, 0, dilation, ceil)
    return result


def _average(
    x: Tensor, *, kernel: Any, stride: Any, pads: Any, ceil: bool, count_pads: bool
) -> Tensor:
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    result: Tensor = function(x, kernel, stride, pads, ceil, count_pads)
    return result


def _conv(
    x: Tensor, weight: Tensor, *, stride: Any, padding: Any, dilation: Any, groups: int,
    output_padding: Any = None,
) -> Tensor:  # fmt: skip
    """A transposed one where it has an output padding."""
    transposed, more = output_padding is not None, output_padding or (0,) * len(stride)
    return torch.convolution(x, weight, None, stride, padding, dilation, transposed, more, groups)


def _layer_norm(x: Tensor, *, axes: Any, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt()


def _group_norm(x: Tensor, *, groups: int, eps: float) -> Tensor:
    return F.group_norm(x, groups, eps=eps)


def _upsample(x: Tensor, *, size: Any, mode: str, align: bool) -> Tensor:
    corners = {} if mode in ("nearest", "area", "nearest-exact") else {"align_corners": align}
    return F.interpolate(x, size, mode=mode, **corners)


def _pad(x: Tensor, *, pads: Any, mode: str, value: float = 0.0) -> Tensor:
    flat = [side for pair in reversed(pads) for side in pair]
    return F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat, mode)


def _compared(how: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A comparison as ones and zeros in the type of what is compared."""
    return lambda x, y: how(x, y).to(x.dtype)


KINDS: dict[str, Callable[..., Tensor]] = {
    "abs": torch.abs,
    "at_least": _compared(torch.ge),
    "amax": lambda x, *, axes, keep: torch.amax(x, axes, keep),
    "average_pool": _average,
    "cat": lambda *parts, axis: torch.cat(parts, axis),
    "ceil": torch.ceil,
    "clip": lambda x, *, low, high: x.clamp(low, high),
    "conv": _conv,
    "cos": torch.cos,
    "conv_transpose": _conv,
    "elu": lambda x, *, alpha: F.elu(x, alpha),
    "equal": _compared(torch.eq),
    "erf": torch.erf,
    "exp": torch.exp,
    "expand": lambda x, *, to: x.expand(to),
    "floor": torch.floor,
    "gather": lambda x, *, axis, order: x.index_select(axis, torch.tensor(order)),
    "greater": _compared(torch.gt),
    "grid_sample": lambda x, grid, *, mode, padding, align: torch.grid_sampler(
        x, grid, mode, padding, align
    ),
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "leaky_relu": lambda x, *, slope: F.leaky_relu(x, slope),
    "log": torch.log,
    "matmul": torch.matmul,
    "max_pool": _max_pool,
    "maximum": torch.maximum,
    "mean": lambda x, *, axes, keep: x.mean(axes, keep),
    "minimum": torch.minimum,
    "mul": torch.mul,
    "pad": _pad,
    "permute": lambda x, *, order: x.permute(order),
    "pow": lambda x, *, exponent: x.pow(exponent),
    "prelu": F.prelu,
    "reshape": lambda x, *, to: x.reshape(to),
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "sin": torch.sin,
    "softmax": lambda x, *, axis: x.softmax(axis),
    "softplus": lambda x: F.softplus(x, threshold=1e9),
    "tanh": torch.tanh,
    "unequal": _compared(torch.ne),
    "upsample": _upsample,
    "where": lambda chosen, x, y: torch.where(chosen != 0, x, y),
}
"""What each kind computes, from its arguments and its attributes by name."""

COMMUTATIVE = frozenset({"equal", "maximum", "minimum", "mul", "unequal"})
"""Kinds whose arguments may stand in any order."""

POINTWISE = frozenset(
    {"abs", "at_least", "ceil", "clip", "cos", "elu", "equal", "erf", "exp", "floor", "greater",
     "leaky_relu", "log", "maximum", "minimum", "mul", "pow", "round", "sigmoid", "sign", "sin",
     "softplus", "tanh", "unequal", "where"}
)  # fmt: skip
"""Kinds that act on every element by itself, where all arguments have one shape."""
