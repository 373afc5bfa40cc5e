"""Small nets written in a test, and the check that every one of them has to pass when fused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import reparam
from checking import Snapshot, assert_no_dearer, assert_same_function
from counting import count
from reparam import Why
from zoo import randomise

__all__ = ["TOLERANCE", "Lambda", "Pair", "TwoBranches", "check", "conv", "image", "norm"]

TOLERANCE = 1e-12


class Lambda(nn.Module):
    """A module whose forward is given; its parts are attributes ``a``, ``b``, ..."""

    def __init__(self, forward: Callable[..., object], *parts: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, part in zip("abcdef", parts, strict=False):
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> object:
        return self.run(self, x)


class Pair(nn.Module):
    """A convolution and its norm, for six channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


def conv(cin: int = 4, cout: int = 4, k: int = 3, **kw: object) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, k, **{"padding": k // 2, "bias": False, **kw})


def norm(channels: int = 4) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def image(*shape: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(shape or (2, 4, 9, 8), generator=rng, dtype=torch.float64)


def check(
    model: nn.Module,
    *inputs: torch.Tensor,
    convs: int | None = None,
    norms: int | None = None,
    because: Why | None = None,
    example: bool = True,
) -> nn.Module:
    """Fuse and compare; ``convs`` and ``norms`` left; ``because`` must be among the reasons."""
    model = randomise(model.double())
    inputs = inputs or (image(), image(3, 4, 6, 11))
    before = Snapshot.of(model)
    plan = reparam.plan(model, inputs[0] if example else None)
    fused = plan.apply()
    before.assert_unchanged(model)
    for x in inputs:
        assert_same_function(model, fused, x, tolerance=TOLERANCE)
        assert_no_dearer(model, fused, x)
    _, tally = count(fused, inputs[0])
    assert convs is None or tally.convs == convs
    assert norms is None or tally.norms == norms
    kinds = {r.reason.kind for r in plan.refusals}
    assert because is None or because in kinds, f"reasons given: {kinds}"
    return fused


class TwoBranches(nn.Module):
    """Two kernels, which one layer replaces, and what the caller may ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = conv(), conv(k=1), norm()

    def both(self, x: torch.Tensor) -> torch.Tensor:
        return self.n(self.a(x) + self.b(x))
