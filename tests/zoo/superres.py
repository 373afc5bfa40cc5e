"""The edge-oriented convolution block of ECBSR (super-resolution)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ._common import per_channel

__all__ = ["EdgeOrientedBlock"]

_MASKS = {
    "sobel_x": ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0)),
    "sobel_y": ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0)),
    "laplacian": ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0)),
}
Border = Literal["written", "padded_input", "no_bias"]


class _Squeezed(nn.Module):
    """A 1x1 convolution whose output gets a border of its own bias (or of zero without bias)."""

    def __init__(self, cin: int, cout: int, border: Border) -> None:
        super().__init__()
        self.border = border
        self.conv = nn.Conv2d(cin, cout, 1, bias=border != "no_bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.border == "padded_input":  # a 1x1 kernel sees zeros there and gives its bias
            return self.conv(F.pad(x, (1, 1, 1, 1)))
        out = F.pad(self.conv(x), (1, 1, 1, 1))
        if self.border == "written":
            assert self.conv.bias is not None
            edge = per_channel(self.conv.bias)
            out[:, :, 0:1, :] = edge
            out[:, :, -1:, :] = edge
            out[:, :, :, 0:1] = edge
            out[:, :, :, -1:] = edge
        return out


class _MaskedBranch(nn.Module):
    """1x1, then a fixed edge mask with a learned factor and bias per channel."""

    mask: torch.Tensor

    def __init__(self, cin: int, cout: int, mask: str, border: Border) -> None:
        super().__init__()
        self.squeeze = _Squeezed(cin, cout, border)
        self.register_buffer("mask", torch.tensor(_MASKS[mask]).expand(cout, 1, 3, 3).clone())
        self.scale = nn.Parameter(torch.full((cout, 1, 1, 1), 1e-3))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.cout = cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.scale * self.mask
        return F.conv2d(self.squeeze(x), weight, self.bias, groups=self.cout)


class EdgeOrientedBlock(nn.Module):
    """3x3, 1x1-3x3, 1x1-Sobel x, y, 1x1-Laplacian and identity, summed (ECBSR, ACM MM 2021, 3.2).

    ``border`` says how the bias of the 1x1 steps is kept exact at the image's edge.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        expand: int = 2,
        border: Border = "padded_input",
        activation: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.plain = nn.Conv2d(cin, cout, 3, padding=1)
        self.wide = nn.Sequential(
            _Squeezed(cin, expand * cout, border), nn.Conv2d(expand * cout, cout, 3)
        )
        self.edges = nn.ModuleList(_MaskedBranch(cin, cout, mask, border) for mask in _MASKS)
        self.identity = cin == cout
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.plain(x) + self.wide(x)
        for edge in self.edges:
            out = out + edge(x)
        if self.identity:
            out = out + x
        return self.activation(out)
