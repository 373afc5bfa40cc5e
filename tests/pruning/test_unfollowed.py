"""Channels that are split, gated, or moved into positions: they go, or stay with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam

pytest.importorskip("torch_pruning")


class Between(nn.Module):
    """A convolution, an operation on its 16 channels, and layers behind it that can shrink."""

    def __init__(self, operation, width: int) -> None:
        super().__init__()
        self.operation = operation
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(width, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.operation(self.first(x))).relu()
        return self.last(self.third(y).relu())


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


OPERATIONS = {
    "nn.GLU": (nn.GLU(1), 8),
    "F.glu": (lambda x: F.glu(x, 1), 8),
    "chunk and gate": (lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), 8),
    "slice and gate": (lambda x: x[:, :8] * x[:, 8:], 8),
    "nn.PixelShuffle": (nn.PixelShuffle(2), 4),
    "F.pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 4),
    "nn.PixelUnshuffle": (nn.PixelUnshuffle(2), 64),
    "unequal split": (lambda x: x.split((4, 12), 1)[1], 12),
    "split and join": (lambda x: torch.cat(x.split((4, 12), 1)[::-1], 1), 16),
    "chunk and join of three": (lambda x: torch.cat([*x.chunk(2, 1), x.chunk(2, 1)[1]], 1), 24),
    "unbind": (lambda x: x.unflatten(1, (2, 8)).unbind(1)[0], 8),
    "shuffle": (shuffled, 16),
    "nn.ChannelShuffle": (nn.ChannelShuffle(4), 16),
    "flip": (lambda x: x.flip(1), 16),
    "roll": (lambda x: x.roll(1, 1), 16),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 32),
    "softmax of channels": (lambda x: x.softmax(1), 16),
    "max of channels": (lambda x: torch.cat([x, x.amax(1, keepdim=True)], 1), 17),
    "group norm": (nn.GroupNorm(4, 16), 16),
    "layer norm": (nn.LayerNorm((16, 8, 8)), 16),
    "attention": (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), 16),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_cannot_go_stays_with_its_reason_and_the_rest_goes(name):
    operation, width = OPERATIONS[name]
    net = Between(operation, width).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    result = reparam.prune(reparam.fuse(net), x, macs=0.75, multiple=4)

    assert result.multiply_adds[1] <= 0.75 * result.multiply_adds[0]
    assert result.model(x).shape == net(x).shape
    before, after = result.widths["third"]
    assert after <= before
    changed = {layer for layer, (was, now) in result.widths.items() if was != now}
    assert changed
    assert all(entry.why for entry in result.kept)


class C2f(nn.Module):
    """YOLOv8's block: halves of one convolution, a chain from the second, all of it joined."""

    def __init__(self, cut: str, *, added: bool) -> None:
        super().__init__()
        self.cut, self.added = cut, added
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.split = nn.Conv2d(16, 16, 1)
        self.chain = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(2)
        )
        self.join = nn.Conv2d(32, 16, 1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.split(F.silu(self.stem(x))))
        parts = {
            "chunk": lambda: list(x.chunk(2, 1)),
            "split": lambda: list(x.split((8, 8), 1)),
            "slice": lambda: [x[:, :8], x[:, 8:]],
        }[self.cut]()
        for block in self.chain:
            y = block(parts[-1])
            parts.append(y + parts[-1] if self.added else y)
        return self.last(F.silu(self.join(torch.cat(parts, 1))))


@pytest.mark.parametrize("cut", ["chunk", "split", "slice"])
@pytest.mark.parametrize("added", [False, True])
def test_a_block_of_yolov8(cut, added):
    net = C2f(cut, added=added).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    result = reparam.prune(reparam.fuse(net), x, macs=0.9, multiple=4)
    assert result.model(x).shape == (2, 4, 8, 8)
    assert result.multiply_adds[1] <= 0.9 * result.multiply_adds[0]


def test_a_net_whose_channels_are_shuffled():
    models = pytest.importorskip("torchvision.models")
    net = models.ShuffleNetV2([1, 1, 1], [8, 16, 32, 64, 32], num_classes=5).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    result = reparam.prune(reparam.fuse(net, x), x, macs=0.95, multiple=4)
    assert result.multiply_adds[1] <= 0.95 * result.multiply_adds[0]
    assert all(entry.why for entry in result.kept)
