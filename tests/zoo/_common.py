"""What the zoo's blocks are built from, and how their numbers are drawn.

Nothing here knows of deployment: the blocks are what a paper's training code would be.
"""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["CONV", "NORM", "conv_bn", "per_channel", "randomise"]

CONV: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
NORM: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def conv_bn(
    cin: int,
    cout: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = False,
    rank: int = 2,
) -> nn.Sequential:
    """Build a convolution (padded to keep the size unless told otherwise) and its normalisation."""
    pad = dilation * (kernel - 1) // 2 if padding is None else padding
    conv = CONV[rank](
        cin, cout, kernel, stride=stride, padding=pad, groups=groups, dilation=dilation, bias=bias
    )
    return nn.Sequential(conv, NORM[rank](cout))


def per_channel(values: torch.Tensor, rank: int = 2) -> torch.Tensor:
    """View ``(C,)`` as ``(1, C, 1, ...)`` with ``rank`` spatial dimensions."""
    return values.reshape(1, -1, *([1] * rank))


def _uniform(like: torch.Tensor, low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    draw = torch.rand(like.shape, generator=rng, dtype=torch.float64)
    return (low + (high - low) * draw).to(like.dtype)


def _normal(like: torch.Tensor, scale: float, rng: torch.Generator) -> torch.Tensor:
    draw = torch.randn(like.shape, generator=rng, dtype=torch.float64)
    return (scale * draw).to(like.dtype)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and all five quantities of every normalisation, in place; set eval.

    Gammas take both signs, and epsilons run from 1e-5 to 1e-1, so that neither a dropped sign nor
    a default epsilon goes unnoticed. Returns the module.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 4
            parameter.copy_(_normal(parameter, 1 / math.sqrt(fan), rng))
        for part in module.modules():
            mean, var = getattr(part, "running_mean", None), getattr(part, "running_var", None)
            if not (isinstance(mean, torch.Tensor) and isinstance(var, torch.Tensor)):
                continue
            mean.copy_(_normal(mean, 0.5, rng))
            var.copy_(_uniform(var, 0.3, 3.0, rng))
            part.eps = float(10 ** (-5 + 4 * torch.rand((), generator=rng)))
            if isinstance(part.weight, torch.Tensor):
                sign = torch.where(_uniform(mean, 0, 1, rng) < 0.25, -1, 1)
                part.weight.copy_(sign * _uniform(mean, 0.4, 1.6, rng))
                part.bias.copy_(_normal(mean, 0.5, rng))
    return module.eval()
