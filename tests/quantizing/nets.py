"""Small single-path nets, and one that rounding destroys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["badly_scaled", "inputs", "single_path"]


def single_path(channels: int = 8, classes: int = 5) -> nn.Sequential:
    """Return convolutions and ReLUs between images (3, 12, 12) and logits, in eval mode."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    ).eval()


def badly_scaled(net: nn.Sequential, factor: float = 300.0) -> nn.Sequential:
    """Return an equal net in which one channel of the first activation is ``factor`` times wider.

    So the step of that activation, and of every row of the weight that reads it, fits that channel
    alone; in float nothing changes but rounding.
    """
    import copy

    equal = copy.deepcopy(net)
    first, second = equal[0], equal[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert first.bias is not None
    with torch.no_grad():
        first.weight[1] *= factor
        first.bias[1] *= factor
        second.weight[:, 1] /= factor
    return equal


def inputs(count: int = 48, *, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, 12, 12, generator=generator, dtype=dtype)
