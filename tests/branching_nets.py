"""Convolutions of all geometries, and a net of them, to be branched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reparam.branching import (
    kinds,
    plan_branching,
)

F64 = torch.float64
EXACT = 1e-12
KINDS = kinds()
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "valid": {"kernel_size": 3},
    "wide-padding": {"kernel_size": 3, "padding": 3},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 4},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 3},
    "same-even": {"kernel_size": (4, 2), "padding": "same"},
    "patchify": {"kernel_size": 2, "stride": 2},
    "even-stride": {"kernel_size": 4, "stride": 2, "padding": 1},
    "anisotropic": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (2, 0)},
    "reflect": {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 2},
    "replicate-even": {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
    "large": {"kernel_size": (7, 6), "padding": 3, "stride": (1, 2)},
}


def fits(kind: str, geometry: str) -> bool:
    conv = nn.Conv2d(4, 4, **GEOMETRIES[geometry]).eval()
    return bool(plan_branching(conv, kind).regions)


FITTING = [(kind, geometry) for kind in KINDS for geometry in GEOMETRIES if fits(kind, geometry)]
OF_3X3 = [kind for kind in KINDS if fits(kind, "3x3")]


def difference(left: nn.Module, right: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return (left(x) - right(x)).abs().max().item()


class Net(nn.Module):
    """Convolutions of several kinds, one of them used twice, with BN of random statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.again = nn.ModuleList([self.shared])
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Linear(8, 5)
        self.tag = "kept"
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
                module.eps = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.norm(self.pointwise(self.again[0](self.shared(x).relu()))).relu()
        return self.head(self.up(x).mean((2, 3)))


X = (4, 3, 17, 16)
