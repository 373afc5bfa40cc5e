"""What the tests of cut models share: a net in float64, a layer, and when results are equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from small_nets import conv, norm
from zoo import randomise

__all__ = ["double", "equal", "layer", "names"]


def double(model: nn.Module) -> nn.Module:
    return randomise(model.double()).eval()


def layer(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(conv(), norm(), nn.ReLU(), nn.Conv2d(4, channels, 1))


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def equal(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
