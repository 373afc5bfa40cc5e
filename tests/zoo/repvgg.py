"""Blocks of parallel square kernels: RepVGG, QARepVGG, the YOLO re-parameterised convolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from ._common import CONV, NORM, conv_bn

__all__ = ["QARepVGGBlock", "RepVGGBlock", "YoloRepConv"]


class RepVGGBlock(nn.Module):
    """``BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x)``, the last if shapes allow (2101.03697, 3.2)."""

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        rank: int = 2,
        activation: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        same = cin == cout and stride == 1
        self.dense = conv_bn(
            cin, cout, kernel, stride=stride, groups=groups, dilation=dilation, rank=rank
        )
        self.pointwise = conv_bn(cin, cout, 1, stride=stride, groups=groups, rank=rank)
        self.identity = NORM[rank](cin) if same else None
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            out = out + self.identity(x)
        return self.activation(out)


class QARepVGGBlock(nn.Module):
    """RepVGG with fewer inner normalisations and one after the sum (2212.01593, table 4).

    ``bare_identity``: no BN on the identity. ``bare_branches``: none on the 1x1 either.
    ``post_norm``: as ``bare_branches``, with a BN behind the sum (the block the paper settles on).
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        variant: Literal["bare_identity", "bare_branches", "post_norm"] = "post_norm",
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.dense = conv_bn(cin, cout, 3, stride=stride, groups=groups)
        self.pointwise: nn.Module = (
            conv_bn(cin, cout, 1, stride=stride, groups=groups)
            if variant == "bare_identity"
            else nn.Conv2d(cin, cout, 1, stride=stride, groups=groups, bias=False)
        )
        self.skips = cin == cout and stride == 1
        self.norm = nn.BatchNorm2d(cout) if variant == "post_norm" else nn.Identity()
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.dense(x) + self.pointwise(x)
        out = out + x if self.skips else out
        return self.activation(self.norm(out))


class YoloRepConv(nn.Module):
    """The planned re-parameterised convolution of YOLOv7 (2207.02696, 4.1): branches in a list.

    Sums with Python's ``sum``, so the first addition is ``0 + tensor``.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        branches: list[nn.Module] = [
            conv_bn(cin, cout, 3, stride=stride, groups=groups),
            nn.Sequential(
                nn.Sequential(CONV[2](cin, cout, 1, stride, 0, groups=groups, bias=False)),
                nn.BatchNorm2d(cout),
            ),
        ]
        if cin == cout and stride == 1:
            branches.append(nn.BatchNorm2d(cin))
        self.branches = nn.ModuleList(branches)
        self.act = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(sum(branch(x) for branch in self.branches))
