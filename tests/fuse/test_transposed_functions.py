"""Transposed convolutions that are called as functions take the norms behind them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam

TOLERANCE = 1e-12
"""Relative to the largest output, in float64."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Functional(nn.Module):
    """A transposed convolution from a parameter, and a norm."""

    def __init__(self, dims: int, room, *, bias: bool, groups: int, by_name: bool, computed: bool):
        super().__init__()
        self.run = getattr(room, f"conv_transpose{dims}d")
        self.weight = nn.Parameter(torch.randn(4, 6 // groups, *(3,) * dims))
        self.bias = nn.Parameter(torch.randn(6)) if bias else None
        self.groups, self.by_name, self.computed = groups, by_name, computed
        self.norm = NORMS[dims - 1](6, eps=float(torch.rand(()) * 0.1 + 0.01))
        for value in (self.norm.weight, self.norm.bias, self.norm.running_mean):
            nn.init.normal_(value)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - 0.5 if self.computed else self.weight
        if self.by_name:
            y = self.run(
                x, weight, bias=self.bias, stride=2, padding=1, output_padding=1,
                groups=self.groups,
            )  # fmt: skip
        else:
            y = self.run(x, weight, self.bias, 2, 1, 1, self.groups, 1)
        return self.norm(y)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("room", [torch, F], ids=["torch", "F"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("groups", "by_name"), [(1, True), (2, False)])
@pytest.mark.parametrize("computed", [False, True])
def test_a_functional_transposed_convolution_takes_a_norm(
    dims, room, bias, groups, by_name, computed
):
    net = Functional(dims, room, bias=bias, groups=groups, by_name=by_name, computed=computed)
    net = net.double().eval()
    x = torch.randn(2, 4, *(5,) * dims, dtype=torch.float64)

    plan = reparam.plan(net, x)
    fused = plan.apply()

    assert len(plan.regions) == 1
    assert not plan.refusals
    assert not any(isinstance(module, NORMS) for module in fused.modules())
    expected = net(x)
    error = (fused(x) - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE
    with torch.no_grad():
        next(fused.parameters()).mul_(1 + 1e-6)
    assert (fused(x) - expected).abs().max() / expected.abs().max() > TOLERANCE


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_float32_stays_float32(dims):
    net = Functional(dims, F, bias=True, groups=1, by_name=True, computed=False).eval()
    x = torch.randn(2, 4, *(5,) * dims)
    fused = reparam.fuse(net, x)
    assert {p.dtype for p in fused.parameters()} == {torch.float32}
    assert reparam.verify(net, fused, x).ok
