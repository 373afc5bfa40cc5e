"""A value of one channel that is spread over those of a sum, before channels are moved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import reparam
from stepping import randomised

X = torch.randn(2, 1, 7, 8, dtype=torch.float64)

SCALES: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "norm": lambda m, x: m.norm(x),
    "parameter": lambda m, x: x * m.factor,
    "number": lambda _, x: 0.7 * x,
}
MOVES: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "flip": lambda m, y: m.last(y.flip(1)),
    "shuffle": lambda m, y: m.last(nn.functional.channel_shuffle(y, 2)),
    "parts": lambda m, y: m.pair(y.chunk(2, 1)[1]) + m.pair(y[:, :2]),
    "cat": lambda m, y: m.twice(torch.cat([y, y.flip(1)], 1)),
    "order": lambda m, y: m.last(y[:, [2, 0, 1, 3]]),
    "nothing": lambda m, y: m.last(y),
}


class Spread(nn.Module):
    def __init__(self, scale: str, move: str) -> None:
        super().__init__()
        self.scale, self.move = SCALES[scale], MOVES[move]
        self.norm, self.factor = nn.BatchNorm2d(1), nn.Parameter(torch.rand(1, 1, 1, 1))
        self.wide, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3)
        self.pair, self.twice = nn.Conv2d(2, 3, 3), nn.Conv2d(8, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.move(self, self.scale(self, x) + self.wide(x))


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("scale", SCALES)
def test_one_channel_in_a_sum_of_several(scale: str, move: str) -> None:
    model = randomised(Spread(scale, move)).eval()
    program = torch.export.export(model, (X,))
    for fused in (reparam.fuse(model), reparam.fuse(model, X), reparam.fuse(program).module()):
        torch.testing.assert_close(fused(X), model(X), rtol=1e-9, atol=1e-9)
