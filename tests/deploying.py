"""A small network in both forms for tests of engines, exports and measurements.

Folded by hand, so that these tests do not depend on the fuser and find it wrong if need be.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Block", "fold", "network", "real_inputs"]


class Block(nn.Module):
    """ReLU of BN(3x3) + BN(1x1) + BN: the training block of RepVGG at stride 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm0 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.norm3(self.conv3(x))
        one = self.norm1(self.conv1(x))
        same = self.norm0(x)
        return torch.relu(three + one + same)


class SinglePath(nn.Module):
    """One convolution and a ReLU that writes over its argument."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu_()


def network(channels: int = 8, classes: int = 5) -> nn.Sequential:
    """Return two blocks between a stem and a head, in eval mode, all BN quantities random."""
    net = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, stride=2),
        Block(channels),
        Block(channels),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise(module)
    return net.eval()


def randomise(norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.3)
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    norm.eps = float(torch.empty(()).uniform_(1e-6, 1e-3))


def fold(net: nn.Sequential) -> nn.Sequential:
    """Return the same function with one convolution a block."""
    modules = [_single(m) if isinstance(m, Block) else m for m in net]
    return nn.Sequential(*modules).eval()


def _single(block: Block) -> SinglePath:
    conv3 = block.conv3
    conv = nn.Conv2d(conv3.in_channels, conv3.out_channels, 3, padding=1)
    scale = [
        (n.weight / torch.sqrt(n.running_var + n.eps)).double()  # type: ignore[operator]
        for n in (block.norm3, block.norm1, block.norm0)
    ]
    kernel = scale[0][:, None, None, None] * conv3.weight.double()
    kernel[:, :, 1, 1] += scale[1][:, None] * block.conv1.weight[:, :, 0, 0].double()
    kernel[:, :, 1, 1] += torch.diag(scale[2])
    bias = sum(
        n.bias.double() - t * n.running_mean.double()  # type: ignore[union-attr]
        for n, t in zip((block.norm3, block.norm1, block.norm0), scale, strict=True)
    )
    with torch.no_grad():
        conv.weight.copy_(kernel)
        conv.bias.copy_(bias)  # type: ignore[union-attr, arg-type]
    return SinglePath(conv)


def real_inputs(batch: int = 4, size: int = 16) -> torch.Tensor:
    """Return a batch of images (batch, 3, size, size) with structure, not white noise alone."""
    coarse = torch.randn(batch, 3, 4, 4)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return smooth + 0.1 * torch.randn(batch, 3, size, size)
