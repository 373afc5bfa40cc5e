"""Every folded float32 number is the correctly rounded one, judged by exact rational arithmetic.

A fold computes in float64 and rounds once more at the end. Its float64 value is off by a few units
in its own last place, so the float32 number is the nearest one unless the exact value lies within
some 1e-8 ulp (of float32) of the middle between two: never seen, and at most 0.50000001 ulp then.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import reparam
from reparam import algebra

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = 8


def exact_root(value: Fraction) -> Fraction:
    """The square root, with a relative error below 2^-200."""
    shift = 1 << 256
    numerator = math.isqrt(value.numerator * value.denominator * shift * shift)
    return Fraction(numerator, value.denominator * shift)


def exact_scale(norm: nn.BatchNorm2d) -> tuple[list[Fraction], list[Fraction]]:
    """Scale and shift per channel, from the stored float32 numbers and eps as it is given."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scales, shifts = [], []
    for gamma, beta, mean, var in zip(
        *(map(Fraction, t.tolist()) for t in (norm.weight, norm.bias)),
        *(map(Fraction, t.tolist()) for t in (norm.running_mean, norm.running_var)),
        strict=True,
    ):
        scale = gamma / exact_root(var + Fraction(norm.eps))
        scales.append(scale)
        shifts.append(beta - mean * scale)
    return scales, shifts


def ulps_off(found: Tensor, exact: list[Fraction]) -> tuple[float, int]:
    """The largest error in units in the last place of float32, and how many are not nearest."""
    assert found.dtype is torch.float32
    up = torch.nextafter(found, torch.tensor(math.inf))
    down = torch.nextafter(found, torch.tensor(-math.inf))
    worst, not_nearest = 0.0, 0
    rows = zip(*(t.flatten().tolist() for t in (found, up, down)), exact, strict=True)
    for value, above, below, truth in rows:
        error = truth - Fraction(value)
        spacing = Fraction(above) - Fraction(value) if error > 0 else Fraction(value - below)
        ulps = abs(error) / spacing
        worst = max(worst, float(ulps))
        not_nearest += ulps > Fraction(1, 2)
    return worst, not_nearest


def norm(channels: int = CHANNELS) -> nn.BatchNorm2d:
    """A norm with random numbers, eps too."""
    made = nn.BatchNorm2d(channels, eps=10 ** -(1 + 5 * torch.rand(()).item())).eval()
    with torch.no_grad():
        for tensor in (made.weight, made.bias, made.running_mean):
            assert tensor is not None
            tensor.normal_()
        assert made.running_var is not None
        made.running_var.copy_(torch.rand(channels) * 10 ** (4 * torch.rand(channels) - 3))
    return made


class Block(nn.Module):
    """The sum of a 3x3, a 1x1 and an identity branch, a BN in each."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias), norm())
        self.point = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=bias), norm())
        self.skip = norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.point(x) + self.skip(x)

    def exact(self) -> tuple[list[Fraction], list[Fraction]]:
        """The kernel (flat) and bias that the block stands for."""
        dense, point = self.dense[0], self.point[0]
        scales, shifts = zip(
            *(exact_scale(part) for part in (self.dense[1], self.point[1], self.skip)), strict=True
        )
        kernel = []
        for o, i, row, column in torch.cartesian_prod(
            *(torch.arange(n) for n in dense.weight.shape)
        ).tolist():
            total = Fraction(dense.weight[o, i, row, column].item()) * scales[0][o]
            if row == column == 1:
                total += Fraction(point.weight[o, i, 0, 0].item()) * scales[1][o]
                total += scales[2][o] if o == i else 0
            kernel.append(total)
        bias = []
        for o in range(CHANNELS):
            total = sum((part[o] for part in shifts), Fraction(0))
            for k, conv in enumerate((dense, point)):
                if conv.bias is not None:
                    total += Fraction(conv.bias[o].item()) * scales[k][o]
            bias.append(total)
        return kernel, bias


@pytest.mark.parametrize("seed", range(5))
def test_a_norm_folded_into_a_convolution(seed: int) -> None:
    torch.manual_seed(seed)
    weight, part = torch.randn(CHANNELS, 3, 3, 3), norm()
    op = algebra.batch_norm(
        part.running_mean, part.running_var, part.weight, part.bias, eps=part.eps, dims=2
    ) @ algebra.conv(weight)
    scales, shifts = exact_scale(part)
    exact = [
        Fraction(value) * scales[o]
        for o, row in enumerate(weight.flatten(1).tolist())
        for value in row
    ]
    assert op.bias is not None
    with torch.no_grad():
        assert ulps_off(op.kernel.float(), exact)[1] == 0
        assert ulps_off(op.bias.float(), shifts)[1] == 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_three_branches_fused(seed: int, *, bias: bool) -> None:
    torch.manual_seed(seed)
    block = Block(bias=bias).eval()
    kernel, shift = block.exact()
    fused = reparam.fuse(block, torch.randn(1, CHANNELS, 5, 5))
    (layer,) = (m for m in fused.modules() if isinstance(m, nn.Conv2d))
    assert layer.bias is not None
    assert ulps_off(layer.weight.detach(), kernel) == (pytest.approx(0.5, abs=0.01), 0)
    assert ulps_off(layer.bias.detach(), shift)[1] == 0


def test_arithmetic_in_float32_would_not_do() -> None:
    """The same block folded in float32, as the published code does, is far off."""
    block = Block(bias=False).eval()
    kernel, _ = block.exact()

    def scaled(weight: Tensor, part: nn.BatchNorm2d) -> Tensor:
        assert part.running_var is not None
        return weight * (part.weight / (part.running_var + part.eps).sqrt()).view(-1, 1, 1, 1)

    with torch.no_grad():
        total = scaled(block.dense[0].weight, block.dense[1])
        for weight, part in (
            (block.point[0].weight, block.point[1]),
            (torch.eye(CHANNELS)[..., None, None], block.skip),
        ):
            total = total + nn.functional.pad(scaled(weight, part), (1, 1, 1, 1))
        worst, not_nearest = ulps_off(total, kernel)
    assert worst > 1
    assert not_nearest > 100
