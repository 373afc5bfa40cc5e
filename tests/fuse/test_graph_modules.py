"""Models that torch.fx has traced already, whole or in parts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import fx, nn

import reparam
from checking import assert_same_function
from counting import count
from small_nets import TOLERANCE, conv, image, norm
from zoo import randomise


class Net(nn.Module):
    """A pair, which folds where it stands, and two branches, for which a forward is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(), norm())
        self.a, self.b, self.n = conv(), conv(k=1), norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.n(self.a(x) + self.b(x)).relu()


@pytest.mark.parametrize("part", ["whole", "child", "pair"])
@pytest.mark.parametrize("example", [True, False])
def test_a_graph_module_folds_as_its_module_does(part: str, *, example: bool) -> None:
    traced = fx.symbolic_trace(nn.Sequential(conv(), norm()) if part == "pair" else Net())
    model = nn.Sequential(traced, conv(), norm()) if part == "child" else traced
    model = randomise(model.double())
    before, code = copy.deepcopy(model.state_dict()), traced.code
    fused = reparam.fuse(model, image() if example else None)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert traced.code == code
    assert count(fused, image())[1].norms == 0
    inner = fused[0] if part == "child" else fused
    assert isinstance(inner, fx.GraphModule)
    for made in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):  # noqa: S301 (ours)
        assert_same_function(model, made, image(), tolerance=TOLERANCE)
    inner.recompile()
    assert traced.code == code
