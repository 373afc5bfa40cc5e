"""Large depthwise kernels beside small or dilated ones: RepLKNet and UniRepLKNet."""

from __future__ import annotations

import torch
from torch import nn

from ._common import conv_bn

__all__ = ["DilatedReparamBlock", "LargeKernelBlock"]


class LargeKernelBlock(nn.Module):
    """A large and a small depthwise kernel, each with BN, summed (RepLKNet, 2203.06717, 3.1)."""

    def __init__(self, channels: int, *, large: int = 13, small: int = 5, stride: int = 1) -> None:
        super().__init__()
        self.large = conv_bn(channels, channels, large, stride=stride, groups=channels)
        self.small = conv_bn(channels, channels, small, stride=stride, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.large(x) + self.small(x)


class DilatedReparamBlock(nn.Module):
    """A large depthwise kernel and dilated small ones, each with BN (UniRepLKNet, 2311.15599, 3.2).

    ``branches`` are pairs of kernel size and dilation, none wider than ``large``.
    """

    def __init__(
        self,
        channels: int,
        *,
        large: int = 13,
        branches: tuple[tuple[int, int], ...] = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    ) -> None:
        super().__init__()
        self.large = conv_bn(channels, channels, large, groups=channels)
        self.names = []
        for kernel, dilation in branches:
            name = f"k{kernel}d{dilation}"
            self.names.append(name)
            self.add_module(
                name, conv_bn(channels, channels, kernel, groups=channels, dilation=dilation)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.large(x)
        for name in self.names:
            out = out + self.get_submodule(name)(x)
        return out
