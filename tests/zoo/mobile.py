"""Blocks of mobile networks: MobileOne, RepViT, FastViT, RepGhost, PP-LCNetV2."""

from __future__ import annotations

import torch
from torch import nn

from ._common import conv_bn, per_channel

__all__ = [
    "FastVitBlock",
    "FastVitPatchEmbed",
    "MobileOneBlock",
    "PPLCNetV2Block",
    "RepGhostModule",
    "RepMixer",
    "RepViTBlock",
]


class MobileOneBlock(nn.Module):
    """``k`` equal convolutions, a 1x1 and an identity, each with BN, summed (2206.04040, 3.2)."""

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        branches: int = 4,
        activation: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        same = cin == cout and stride == 1
        self.skip = nn.BatchNorm2d(cin) if same else None
        self.scale = conv_bn(cin, cout, 1, stride=stride, groups=groups) if kernel > 1 else None
        self.convs = nn.ModuleList(
            conv_bn(cin, cout, kernel, stride=stride, groups=groups, dilation=dilation)
            for _ in range(branches)
        )
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor | int = 0
        if self.skip is not None:
            out = self.skip(x)
        if self.scale is not None:
            out = out + self.scale(x)
        for conv in self.convs:
            out = out + conv(x)
        return self.activation(out)


class _RepViTMixer(nn.Module):
    """``BN( BN(dw3x3(x)) + dw1x1(x) + x )`` (RepViT, 2307.09283, 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv_bn(channels, channels, 3, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm((self.conv(x) + self.point(x)) + x)


class _Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class RepViTBlock(nn.Module):
    """The RepViT token mixer followed by its residual feed-forward (2307.09283, figure 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = _RepViTMixer(channels)
        self.channel = _Residual(
            nn.Sequential(
                conv_bn(channels, 2 * channels, 1), nn.GELU(), conv_bn(2 * channels, channels, 1)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.channel(self.token(x))


class RepMixer(nn.Module):
    """``x + gamma * (mix(x) - norm(x))`` (FastViT, 2303.14189, 3.2.1)."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = MobileOneBlock(channels, channels, kernel=1, branches=0, groups=channels)
        self.mixer = MobileOneBlock(channels, channels, kernel=kernel, branches=1, groups=channels)
        self.gamma = nn.Parameter(1e-5 * torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gamma * (self.mixer(x) - self.norm(x))


class FastVitBlock(nn.Module):
    """A RepMixer and a convolutional feed-forward with LayerScale (2303.14189, figure 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer = RepMixer(channels)
        self.local = conv_bn(channels, channels, 7, groups=channels)
        self.expand = nn.Conv2d(channels, 3 * channels, 1)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.1)
        self.project = nn.Conv2d(3 * channels, channels, 1)
        self.gamma = nn.Parameter(1e-5 * torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mixer(x)
        hidden = self.drop(self.act(self.expand(self.local(x))))
        return x + per_channel(self.gamma) * self.drop(self.project(hidden))


class FastVitPatchEmbed(nn.Module):
    """A strided large and small depthwise kernel, then a pointwise MobileOne block (2303.14189)."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.large = conv_bn(cin, cout, 7, stride=2, groups=cin)
        self.small = conv_bn(cin, cout, 3, stride=2, groups=cin)
        self.act = nn.GELU()
        self.point = MobileOneBlock(cout, cout, kernel=1, branches=1, activation=nn.GELU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(self.act(self.large(x) + self.small(x)))


class RepGhostModule(nn.Module):
    """A primary convolution, then a cheap depthwise one beside a BN (2211.06088, figure 4)."""

    def __init__(self, cin: int, cout: int, *, kernel: int = 1) -> None:
        super().__init__()
        self.primary = nn.Sequential(*conv_bn(cin, cout, kernel), nn.ReLU(inplace=True))
        self.cheap = conv_bn(cout, cout, 3, groups=cout)
        self.fusion = nn.Sequential(nn.BatchNorm2d(cout))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.primary(x)
        cheap = self.cheap(primary)
        for branch in self.fusion:
            cheap = cheap + branch(primary)
        return self.relu(cheap)


class PPLCNetV2Block(nn.Module):
    """Depthwise kernels of every odd size up to ``kernel``, then a pointwise convolution.

    The re-parameterised depthwise separable convolution of PP-LCNetV2 (PaddleClas' description).
    """

    def __init__(self, cin: int, cout: int, *, kernel: int = 5, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(
            conv_bn(cin, cin, size, stride=stride, groups=cin) for size in range(kernel, 0, -2)
        )
        self.act = nn.ReLU()
        self.pointwise = conv_bn(cin, cout, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *rest = self.depthwise
        mixed = first(x)
        for branch in rest:
            mixed += branch(x)
        return self.act(self.pointwise(self.act(mixed)))
