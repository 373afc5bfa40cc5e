"""Blocks of unequal branches: ACNet and the Diverse Branch Block."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ._common import conv_bn, per_channel

__all__ = ["AsymmetricBlock", "BorderPaddedNorm", "DiverseBranchBlock", "PadThenNorm"]


class AsymmetricBlock(nn.Module):
    """A kxk, a 1xk and a kx1 convolution, each with BN, summed (ACNet, 1908.03930, 3.2).

    Where ``padding`` is smaller than half the kernel, the flat kernels see a cropped input.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        half = dilation * (kernel - 1) // 2
        pad = half if padding is None else padding
        self.crop = half - pad
        self.square = conv_bn(
            cin, cout, kernel, stride=stride, groups=groups, dilation=dilation, padding=pad
        )

        def flat(shape: tuple[int, int], flat_pad: tuple[int, int]) -> nn.Sequential:
            conv = nn.Conv2d(
                cin, cout, shape, stride, flat_pad, dilation=dilation, groups=groups, bias=False
            )
            return nn.Sequential(conv, nn.BatchNorm2d(cout))

        self.vertical = flat((kernel, 1), (pad, 0))
        self.horizontal = flat((1, kernel), (0, pad))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tall, wide = x, x
        if self.crop:
            c = self.crop
            tall, wide = x[:, :, :, c:-c], x[:, :, c:-c, :]
        return self.square(x) + self.vertical(tall) + self.horizontal(wide)


class BorderPaddedNorm(nn.Module):
    """A BN whose output is padded with what the BN makes of zero, written into the border.

    This is how a 1x1 convolution and a padded kxk one stay composable (DBB, 2103.13425, 3.2).
    """

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.norm(x)
        if not self.pad:
            return out
        norm, p = self.norm, self.pad
        assert norm.running_mean is not None
        assert norm.running_var is not None
        border = norm.bias - norm.running_mean * norm.weight / torch.sqrt(
            norm.running_var + norm.eps
        )
        border = per_channel(border.detach())
        out = F.pad(out, [p, p, p, p])
        out[:, :, :p, :] = border
        out[:, :, -p:, :] = border
        out[:, :, :, :p] = border
        out[:, :, :, -p:] = border
        return out


class PadThenNorm(nn.Module):
    """The same function as :class:`BorderPaddedNorm`, said in two ordinary operators."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.pad(x, [self.pad] * 4))


class _ScaleThenPad(nn.Module):
    """A per-channel factor without shift: zero stays zero, so plain padding is exact."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels))
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x * per_channel(self.factor), [self.pad] * 4)


class _ResidualPointwise(nn.Module):
    """A 1x1 convolution that learns the difference from the identity (2103.13425, 3.3)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        width = channels // groups
        self.weight = nn.Parameter(torch.zeros(channels, width, 1, 1))
        eye = torch.zeros(channels, width, 1, 1)
        eye[torch.arange(channels), torch.arange(channels) % width] = 1
        self.register_buffer("eye", eye)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight + self.eye, groups=self.groups)


class DiverseBranchBlock(nn.Module):
    """kxk, 1x1, 1x1 then kxk, and 1x1 then average, each normalised, summed (2103.13425, 3.3).

    ``between`` says what stands between the two steps of the last two branches.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        between: Literal["border", "pad_then_norm", "scale"] = "pad_then_norm",
    ) -> None:
        super().__init__()
        pad = kernel // 2
        middle = {
            "border": BorderPaddedNorm,
            "pad_then_norm": PadThenNorm,
            "scale": _ScaleThenPad,
        }[between]
        self.origin = conv_bn(cin, cout, kernel, stride=stride, groups=groups)
        self.average = nn.Sequential(
            nn.Conv2d(cin, cout, 1, groups=groups, bias=False),
            middle(cout, pad),
            nn.AvgPool2d(kernel, stride),
            nn.BatchNorm2d(cout),
        )
        self.pointwise = conv_bn(cin, cout, 1, stride=stride, groups=groups)
        self.chain = nn.Sequential(
            _ResidualPointwise(cin, groups),
            middle(cin, pad),
            nn.Conv2d(cin, cout, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(cout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.origin(x) + self.pointwise(x) + self.average(x) + self.chain(x)
