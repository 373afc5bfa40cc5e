"""Models that write their weights, choose by options, share modules, or cannot be copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import reparam
from checking import Snapshot, assert_same_function
from counting import count
from small_nets import TOLERANCE, Lambda, conv, image, norm
from zoo import randomise

# ------------------------------------------------------------------------------- odd models


def test_attributes_that_cannot_be_copied() -> None:
    model = randomise(Lambda(lambda m, x: m.b(m.a(x)), conv(), norm()).double())
    model.names = {"x": 1}.keys()
    fused = reparam.fuse(model, image())
    assert list(fused.names) == ["x"]
    assert count(fused, image())[1].norms == 0
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)


class WritesItsWeight(nn.Module):
    """As SPAN's blocks, which merge their branches at every call, in eval mode too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.e, self.n, self.how = conv(), conv(), conv(), norm(), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.a.weight + self.b.weight
        if self.how == "data":
            self.e.weight.data = weight
        elif self.how == "copy":
            self.e.weight.data.copy_(weight)
        elif self.how == "in place":
            with torch.no_grad():
                self.e.weight.copy_(weight)
        else:
            self.e.weight = nn.Parameter(weight)
        return self.n(self.e(x))


@pytest.mark.parametrize("how", ["data", "copy", "in place", "parameter"])
@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_a_forward_that_writes_its_weights_is_left_alone(
    how: str, *, example: bool, inside: bool
) -> None:
    block = WritesItsWeight(how)
    model = Lambda(lambda m, x: m.c(m.b(m.a(x).relu())), block, conv(), norm()) if inside else block
    model = randomise(model.double())
    before = Snapshot.of(model)
    plan = reparam.plan(model, image() if example else None)
    fused = plan.apply()
    before.assert_unchanged(model)
    assert plan.refusals
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)


@pytest.mark.parametrize("example", [True, False])
def test_no_refusal_has_a_line_break(*, example: bool) -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.b(m.a(torch.from_numpy(x.numpy())))

    plan = reparam.plan(
        Lambda(forward, conv(), norm()).double().eval(), image() if example else None
    )
    assert plan.refusals
    assert not any("\n" in r.why for r in plan.refusals)


def chosen_by(default: object) -> nn.Module:
    """A net of which an option decides what norm follows, and another scales."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = conv(), norm(), norm()
            self.tail, self.last = conv(), norm()

        def forward(self, x, option=default, scale=2.0):
            y = self.conv(x)
            y = self.first(y) if option == default else self.second(y)
            return self.last(self.tail(torch.relu(y))) * scale

    return randomise(Chosen().double()).eval()


@pytest.mark.parametrize(
    ("default", "other"), [("a", "b"), ("", "b"), (1, 2), (0.5, 1.5), (True, False)], ids=repr
)
@pytest.mark.parametrize("example", [True, False], ids=["with an example", "without"])
def test_an_option_of_the_model_is_not_folded_across(
    default: object, other: object, *, example: bool
) -> None:
    model, x = chosen_by(default), image()
    fused = reparam.fuse(model, x if example else None)
    for option in (default, other):
        for scale in (2.0, -3.0):
            found, expected = fused(x, option, scale), model(x, option, scale)
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert count(fused, x)[1].norms == 1  # the last one folds, whatever the option


class Activated(nn.Module):
    """Two branches and what several blocks share: an activation, as YOLO's are, and a weight."""

    def __init__(self, act: nn.Module, scale: nn.Parameter) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.point = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.act, self.scale = act, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.wide(x) + self.point(x)) * self.scale.sum()


@pytest.mark.parametrize("act", [nn.SiLU(), nn.Sequential(nn.SiLU(), nn.Sigmoid())])
def test_blocks_that_share_a_module_are_all_rewritten(act) -> None:
    scale = nn.Parameter(torch.rand(4))
    net = randomise(nn.Sequential(*(Activated(act, scale) for _ in range(3))).double()).eval()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    plan = reparam.plan(net, x)
    assert [region.where for region in plan.regions] == ["0", "1", "2"]
    fused = plan.apply()
    torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert len({block.act for block in fused}) == len({block.scale for block in fused}) == 1
