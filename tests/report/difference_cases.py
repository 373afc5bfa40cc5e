"""Networks that part in a known way, compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

import reparam
from reparam.report import from_diff

if TYPE_CHECKING:
    from reparam.diffing import Difference
    from reparam.report.results import Results

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net(change: str = "") -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    made = nn.Sequential(*layers).eval()
    if change == "weight":
        made[0].weight.data[2, 1, 0, 2] *= 1.5
    elif change == "bias":
        made[1].bias.data[5] += 0.01
    elif change == "infinite":
        made[0].weight.data[2, 1, 0, 2] = float("inf")
    elif change == "operation":
        made[2] = nn.ReLU6()
    return made


def parted(change: str) -> Difference:
    return reparam.diff(net(), net(change), X)


def page(found: Difference) -> Results:
    return from_diff(found, first="mine", second="yours", created="2026-11-29")
