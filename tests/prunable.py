"""Nets for the tests of pruning: small, float64, with every number of their norms random."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import reparam
from reparam import models
from reparam.models import BRANCHES


def settled(net: nn.Module) -> nn.Module:
    """Return the net in eval mode and float64, with random norms."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise(module)
    return net.double().eval()


def randomise(norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.3)
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    norm.eps = float(torch.empty(()).uniform_(1e-6, 1e-3))


def spec(widths: tuple[int, ...] = (16, 32), **options: object) -> models.RepVGGSpec:
    settings = {"stem_width": widths[0], "stem_stride": 1, "strides": 2} | options
    return models.RepVGGSpec(depths=(2,) * len(widths), widths=widths, **settings)  # type: ignore[arg-type]


def repvgg(branches: str = "repvgg", **options: object) -> nn.Module:
    net = models.RepVGG(spec(branches=BRANCHES[branches], **options), num_classes=5)
    return settled(net)


def mobileone() -> nn.Module:
    made = models.MobileOneSpec(depths=(1, 1), widths=(16, 32), stem_width=16, attentive=1)
    return settled(models.MobileOne(made, num_classes=5))


def resnet() -> nn.Module:
    """Return two stages of basic blocks, the second with a 1x1 shortcut."""
    shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        BasicBlock(16, 16), BasicBlock(16, 32, 2, shortcut), BasicBlock(32, 32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    return settled(net)


class Concatenating(nn.Module):
    """Two convolutions whose outputs stand side by side, and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 16, 3, padding=1)
        self.right = nn.Conv2d(3, 32, 1)
        self.behind = nn.Conv2d(48, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), self.right(x)], dim=1).relu()
        return self.last(self.behind(both).relu())


class Flattening(nn.Module):
    """A classifier that sees every position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.transposed = nn.ConvTranspose2d(16, 16, 2, 2)
        self.head = nn.Linear(16 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.transposed(self.conv(x).relu()).relu().flatten(1))


def straight() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    return net.double().eval()


FUSED = {
    "RepVGG": lambda: reparam.fuse(repvgg()),
    "grouped RepVGG": lambda: reparam.fuse(repvgg(groups=2)),
    "RepVGG with squeeze-excitation": lambda: reparam.fuse(repvgg(reduction=2)),
    "MobileOne": lambda: reparam.fuse(mobileone()),
    "ResNet": lambda: reparam.fuse(resnet()),
    "concatenation": lambda: Concatenating().double().eval(),
    "flatten and transposed": lambda: Flattening().double().eval(),
}


def images(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)
