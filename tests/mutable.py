"""Small nets, of every kind of layer there is, for seeded mutations to be found in."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["NETS", "Cat"]


class Cat(nn.Module):
    """Joins along an axis."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *parts):
        return torch.cat(parts, self.axis)


def conv_bn(cin, cout, kernel=3, **options):
    padding = options.pop("padding", kernel // 2)
    conv = nn.Conv2d(cin, cout, kernel, padding=padding, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Everything(nn.Module):
    """Branches, groups, pooling, a gate, a cat, layouts, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, stride=2), nn.ReLU())
        self.wide = conv_bn(8, 8)
        self.narrow = conv_bn(8, 8, 1)
        self.same = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.pool = nn.AvgPool2d(2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.cat = Cat()
        self.tail = nn.Conv2d(16, 12, 1)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.act(self.wide(x) + self.narrow(x) + self.same(x))
        y = F.silu(self.grouped(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        z = F.relu(self.tail(self.cat(self.pool(x), self.pool(y))))
        return self.head(self.norm(z.flatten(2).transpose(1, 2)).mean(1))


class Mobile(nn.Module):
    """Inverted bottlenecks: depthwise layers, squeeze and excitation, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, stride=2), nn.Hardswish())
        self.expand = nn.Sequential(*conv_bn(8, 24, 1), nn.ReLU6())
        self.depthwise = nn.Sequential(*conv_bn(24, 24, groups=24), nn.ReLU6())
        self.down, self.up = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.squeeze = nn.ReLU()
        self.project = conv_bn(24, 8, 1)
        self.last = nn.Sequential(*conv_bn(8, 16, 5, stride=2, groups=8), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * F.hardsigmoid(self.up(self.squeeze(self.down(y.mean((2, 3), keepdim=True)))))
        x = x + self.project(y)
        return self.head(self.last(x).mean((2, 3)))


class Shuffle(nn.Module):
    """Channels split, shuffled and joined; group convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU())
        self.left = nn.Sequential(*conv_bn(6, 6, groups=3), nn.ReLU())
        self.right = nn.Sequential(*conv_bn(6, 6, 1), nn.LeakyReLU(0.1))
        self.cat = Cat()
        self.mix = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.act = nn.ReLU()
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        first, second = self.stem(x).chunk(2, 1)
        x = self.cat(self.left(first), self.right(second))
        x = x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
        return self.head(self.pool(self.act(self.mix(x))).mean((2, 3)))


class Pools(nn.Module):
    """Pooling of every kind in branches that are joined, and flattened for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.largest = nn.MaxPool2d(3, 1, 1)
        self.average = nn.AvgPool2d(3, 1, 1)
        self.inner = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.one = nn.Conv2d(6, 6, 1)
        self.three = nn.Conv2d(6, 6, 3, padding=1)
        self.join = Cat()
        self.act = nn.ReLU()
        self.after = nn.Conv2d(24, 6, (3, 1), padding=(1, 0))
        self.flat = Cat()
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(2 * 6 * 8 * 8, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.join(self.one(self.largest(x)), self.three(x), self.average(x), self.inner(x))
        y = self.after(self.act(y))
        return self.head(self.flat(self.norm(y), x.tanh()).flatten(1))


class Tokens(nn.Module):
    """Patches, attention, a perceptron, norms of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.first = nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.second = nn.LayerNorm(12)
        self.up, self.act, self.down = nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12)
        self.gate = nn.ReLU()
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        batch, count, _ = x.shape
        qkv = self.qkv(self.first(x)).reshape(batch, count, 3, 2, 6).permute(2, 0, 3, 1, 4)
        scores = (qkv[0] @ qkv[1].transpose(-1, -2) * 6**-0.5).softmax(-1)
        x = x + self.out((scores @ qkv[2]).transpose(1, 2).reshape(batch, count, 12))
        x = x + self.down(self.act(self.up(self.second(x))))
        return self.head(self.gate(x).mean(1))


class Shaped(nn.Module):
    """Down and up again: transposed convolutions, resizing, mirrored borders, skips."""

    def __init__(self) -> None:
        super().__init__()
        self.mirror = nn.ReflectionPad2d(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.down = nn.Sequential(*conv_bn(6, 8, stride=2), nn.PReLU(8))
        self.deep = nn.Sequential(*conv_bn(8, 8, padding=2, dilation=2), nn.ELU())
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.resized = nn.Upsample(scale_factor=2, mode="nearest")
        self.side = nn.Conv2d(8, 6, 1)
        self.skip = Cat()
        self.act = nn.ReLU()
        self.out = nn.Conv2d(18, 2, 3, padding=1)

    def forward(self, x):
        x = self.stem(self.mirror(x))
        y = self.deep(self.down(x))
        return self.out(self.act(self.skip(x, self.up(y), self.resized(self.side(y)))))


NETS: dict[str, type[nn.Module]] = {
    cls.__name__.lower(): cls for cls in (Everything, Mobile, Shuffle, Pools, Tokens, Shaped)
}
"""Each takes an image of 3 channels and 16 by 16 pixels."""
