"""What folds meet in ordinary networks: LayerScale, heads, functional and frozen BN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ._common import NORM, conv_bn, per_channel

__all__ = [
    "AveragedHeads",
    "ConvNeXtBlock",
    "ForwardNorm",
    "FrozenNorm",
    "FunctionalNorm",
    "NormBehindCat",
    "ReflectBranches",
    "SharedStem",
    "TokenLinear",
    "TransposedBranch",
]


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, two linears and LayerScale, channels last (2201.03545, 2.6)."""

    def __init__(self, channels: int, *, scale_after_permute: bool = False) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(1e-6 * torch.ones(channels))
        self.scale_after_permute = scale_after_permute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(self.dw(x).permute(0, 2, 3, 1))
        out = self.down(self.act(self.up(out)))
        if self.scale_after_permute:
            return x + per_channel(self.gamma) * out.permute(0, 3, 1, 2)
        return x + (self.gamma * out).permute(0, 3, 1, 2)


class TokenLinear(nn.Module):
    """A linear layer on ``(B, N, C)``, its BN on the flattened tokens (LeViT, 2104.01136, 3)."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cin, cout, bias=False)
        self.norm = nn.BatchNorm1d(cout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x)
        return self.norm(out.flatten(0, 1)).reshape_as(out)


class AveragedHeads(nn.Module):
    """Two BN + linear heads, averaged at inference (LeViT and DeiT distillation)."""

    def __init__(self, cin: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.BatchNorm1d(cin), nn.Linear(cin, classes))
        self.teacher = nn.Sequential(nn.BatchNorm1d(cin), nn.Linear(cin, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ours, theirs = self.head(x), self.teacher(x)
        return (ours + theirs) / 2


class FunctionalNorm(nn.Module):
    """A convolution and a BN written with ``torch.nn.functional`` over bare tensors."""

    mean: torch.Tensor
    var: torch.Tensor

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(cout, cin, 3, 3))
        self.gain = nn.Parameter(torch.full((cout,), 0.7))
        self.shift = nn.Parameter(torch.full((cout,), 0.2))
        self.register_buffer("mean", torch.linspace(-1, 1, cout))
        self.register_buffer("var", torch.linspace(0.5, 2, cout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.conv2d(x, self.kernel, padding=1)
        return F.batch_norm(
            out, self.mean, self.var, self.gain, self.shift, self.training, 0.1, 1e-3
        )


class FrozenNorm(nn.Module):
    """BN as arithmetic on four buffers, as detection backbones freeze it."""

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.linspace(-1.5, 1.5, channels))
        self.register_buffer("bias", torch.linspace(0.3, -0.4, channels))
        self.register_buffer("mean", torch.linspace(-1, 1, channels))
        self.register_buffer("var", torch.linspace(0.5, 2, channels))
        self.eps = 1e-4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.reshape(1, -1, 1, 1)
        bias = self.bias.reshape(1, -1, 1, 1)
        scale = weight * (self.var.reshape(1, -1, 1, 1) + self.eps).rsqrt()
        return x * scale + (bias - self.mean.reshape(1, -1, 1, 1) * scale)


class NormBehindCat(nn.Module):
    """Convolutions of several sizes, concatenated, then one BN (MixConv, 1907.09595, 3.1)."""

    def __init__(self, channels: int, sizes: tuple[int, ...] = (3, 5, 7)) -> None:
        super().__init__()
        width = channels // len(sizes)
        self.width = width
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width, bias=False)
            for size in sizes
        )
        self.norm = nn.BatchNorm2d(width * len(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x, self.width, dim=1)
        out = torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)
        return self.norm(out)


class ForwardNorm(nn.Module):
    """BN, then what stands before the next 1x1 or linear layer (pre-activation order, no ReLU)."""

    def __init__(self, cin: int, cout: int, kernel: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(cin)
        self.conv = nn.Conv2d(cin, cout, kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


class ReflectBranches(nn.Module):
    """RepVGG's three branches over one non-zero padding mode."""

    def __init__(self, channels: int, mode: str = "reflect", rank: int = 2) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.dense = nn.Sequential(
            conv(channels, channels, 3, padding=1, padding_mode=mode, bias=False),
            NORM[rank](channels),
        )
        self.point = conv_bn(channels, channels, 1, rank=rank)
        self.identity = NORM[rank](channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x) + self.point(x) + self.identity(x)


class TransposedBranch(nn.Module):
    """A transposed convolution (grouped or not) and its BN."""

    def __init__(self, cin: int, cout: int, *, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(
            cin, cout, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.up(x))


class SharedStem(nn.Module):
    """One conv + BN read by two users, each another conv + BN: three convolutions in the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = conv_bn(channels, channels, 3)
        self.left = conv_bn(channels, channels, 3)
        self.right = conv_bn(channels, channels, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stem = self.stem(x)
        return self.left(stem), self.right(stem)
