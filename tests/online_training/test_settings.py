"""Merged blocks under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stepping import assert_same_state, merged_by_force, randomised
from zoo.mobile import MobileOneBlock


def _pair(**options: object) -> tuple[nn.Module, nn.Module]:
    wide = randomised(nn.Sequential(MobileOneBlock(6, 6, **options), nn.ReLU()))
    return wide, merged_by_force(wide)


@pytest.mark.parametrize("options", [{"groups": 6}, {"kernel": 1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_statistics_in_float32(options: dict[str, int], dtype) -> None:
    wide, online = _pair(**options)
    online.float()
    x = torch.randn(8, 6, 9, 9, dtype=torch.float64) + 20
    x = x.to(dtype).double()
    expected = wide(x)
    with torch.autocast("cpu", dtype):
        found = online(x.to(dtype))
    assert found.dtype == dtype
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error < 0.1, "the convolution alone is in half precision"
    found.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in online.parameters())
    assert_same_state(wide, online, rtol=1e-3)
