"""Layers that compute their kernel: OREPA, weight standardisation, weight and spectral norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from ._common import conv_bn

__all__ = ["OrepaBlock", "StandardisedConv", "spectral_conv_bn", "weight_normed_conv_bn"]


def _frequency_prior(channels: int, kernel: int) -> torch.Tensor:
    """Cosine patterns of growing frequency, one a channel, ``(channels, kernel, kernel)``."""
    grid = torch.zeros(channels, kernel, kernel)
    half = channels // 2
    rows = torch.arange(kernel).reshape(-1, 1)
    cols = torch.arange(kernel).reshape(1, -1)
    for i in range(channels):
        index, axis = (i, rows) if i < half else (i - half, cols)
        grid[i] = torch.cos(math.pi * (axis + 0.5) * (index + 1) / kernel).expand(kernel, kernel)
    return grid


class OrepaBlock(nn.Module):
    """Branches merged in weight space before a single convolution and BN (2204.00826, 3.2).

    Branches, each with a per-channel scaling vector: the kernel itself, average pooling behind a
    1x1, a frequency prior behind a 1x1, a 1x1 alone, 1x1 then kxk, and depthwise then pointwise.
    """

    prior: torch.Tensor
    window: torch.Tensor
    eye: torch.Tensor

    def __init__(
        self, cin: int, cout: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, groups
        width = cin // groups
        self.origin = nn.Parameter(torch.zeros(cout, width, kernel, kernel))
        self.average = nn.Parameter(torch.zeros(cout, width, 1, 1))
        self.frequency = nn.Parameter(torch.zeros(cout, width, 1, 1))
        self.pointwise = nn.Parameter(torch.zeros(cout, width, 1, 1))
        self.inner = nn.Parameter(torch.zeros(groups, width, width))
        self.outer = nn.Parameter(torch.zeros(cout, width, kernel, kernel))
        self.depth = nn.Parameter(torch.zeros(4 * width, kernel, kernel))
        self.mix = nn.Parameter(torch.zeros(cout, 4 * width))
        self.vector = nn.Parameter(torch.ones(6, cout))
        self.register_buffer("window", torch.full((kernel, kernel), 1 / kernel**2))
        self.register_buffer("prior", _frequency_prior(cout, kernel))
        self.register_buffer("eye", torch.eye(width).expand(groups, width, width).clone())
        self.norm = nn.BatchNorm2d(cout)

    def weight(self) -> torch.Tensor:
        """Sum the branches' kernels: ``(cout, cin / groups, kernel, kernel)``."""
        cout, width, k, _ = self.origin.shape
        half = k // 2
        average = torch.einsum("oi,hw->oihw", self.average.squeeze(3).squeeze(2), self.window)
        frequency = torch.einsum("oi,ohw->oihw", self.frequency[:, :, 0, 0], self.prior)
        pointwise = F.pad(self.pointwise, (half, half, half, half))
        outer = self.outer.reshape(self.groups, cout // self.groups, width, k, k)
        chained = torch.einsum("goihw,gij->gojhw", outer, self.inner + self.eye)
        depth = self.depth.view(4, width, k, k)
        separable = torch.einsum("odi,dihw->oihw", self.mix.view(cout, 4, width), depth)
        kernels = (
            self.origin,
            average,
            frequency,
            pointwise,
            chained.reshape(cout, width, k, k),
            separable,
        )
        total = torch.zeros_like(self.origin)
        for kernel, scale in zip(kernels, self.vector.unbind(0), strict=True):
            total = total + torch.einsum("oihw,o->oihw", kernel, scale)
        return total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.conv2d(x, self.weight(), None, self.stride, self.kernel // 2, 1, self.groups)
        return self.norm(out)


class StandardisedConv(nn.Conv2d):
    """A convolution whose kernel has zero mean and unit variance (1903.10520, 3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        std = self.weight.std(dim=(1, 2, 3), keepdim=True, unbiased=False) + 1e-5
        weight = (self.weight - mean) / std
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def weight_normed_conv_bn(cin: int, cout: int) -> nn.Sequential:
    """Build a convolution under ``parametrizations.weight_norm``, then BN."""
    block = conv_bn(cin, cout, 3)
    parametrizations.weight_norm(block[0])
    return block


def spectral_conv_bn(cin: int, cout: int) -> nn.Sequential:
    """Build a convolution under ``parametrizations.spectral_norm``, then BN."""
    block = conv_bn(cin, cout, 3, bias=True)
    parametrizations.spectral_norm(block[0])
    return block
