"""Code that looks at what its layers are: their types, their numbers of children, their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import InputError
from small_nets import Pair
from zoo import randomise

Forward = Callable[[Any, torch.Tensor], torch.Tensor]
X = torch.randn(2, 6, 9, 8, dtype=torch.float64)


def _type_of_a_child(m: Any, y: torch.Tensor) -> torch.Tensor:
    return y.relu() if isinstance(m.first.norm, nn.BatchNorm2d) else y


def _name_of_a_type(m: Any, y: torch.Tensor) -> torch.Tensor:
    return y.relu() if type(m.first.norm).__name__ == "BatchNorm2d" else y


def _an_attribute(m: Any, y: torch.Tensor) -> torch.Tensor:
    return y.relu() if hasattr(m.first.norm, "running_mean") else y


def _a_field(m: Any, y: torch.Tensor) -> torch.Tensor:
    return y.relu() + m.first.norm.eps * m.first.norm.num_features


def _how_many(m: Any, y: torch.Tensor) -> torch.Tensor:
    return y.relu() + len(list(m.first.parameters())) + len(m.state_dict())


def _printed(m: Any, y: torch.Tensor) -> torch.Tensor:
    return y.relu() if "BatchNorm2d" in repr(m.first) else y


def _any_module(m: Any, y: torch.Tensor) -> torch.Tensor:
    for child in m.modules():
        y = y.relu() + 1 if isinstance(child, nn.BatchNorm2d) else y
    return y


def _a_missing_bias(m: Any, y: torch.Tensor) -> torch.Tensor:
    return y.relu() if m.first.conv.bias is not None and m.first.norm.affine else y


LOOKS = (
    _type_of_a_child, _name_of_a_type, _an_attribute, _a_field, _how_many, _printed, _any_module,
    _a_missing_bias,
)  # fmt: skip


class Reading(nn.Module):
    def __init__(self, how: Forward) -> None:
        super().__init__()
        self.first, self.second, self.how = Pair(), Pair(), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.how(self, self.first(x)))


class Undecided(Reading):
    """One whose code also decides on numbers, so that it cannot be written as one way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        if y.mean().item() < 1e9:
            y = self.how(self, y)
        return self.second(y)


def _norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("example", [X, None], ids=["example", "no example"])
@pytest.mark.parametrize("deep", [False, True], ids=["model", "child"])
@pytest.mark.parametrize("how", LOOKS, ids=lambda how: how.__name__)
def test_what_it_found_when_it_was_read_stays(
    how: Forward, *, deep: bool, example: torch.Tensor | None
) -> None:
    net: nn.Module = Reading(how)
    net = randomise((nn.Sequential(net, Pair()) if deep else net).double())
    fused = reparam.fuse(net, example)
    assert _norms(fused) == 0
    for x in (X, torch.randn(1, 6, 5, 11, dtype=torch.float64)):
        torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        next(p for p in fused.parameters() if p.dim() == 4).mul_(1.01)
    assert not torch.allclose(fused(X), net(X), rtol=1e-6)


@pytest.mark.parametrize("how", [_type_of_a_child, _a_field], ids=lambda how: how.__name__)
def test_where_it_cannot_stay_what_it_reads_is_left(how: Forward) -> None:
    net = randomise(Undecided(how).double())
    with pytest.warns(reparam.FoldWarning):
        fused = reparam.fuse(net, X)
    assert _norms(fused) == 1
    torch.testing.assert_close(fused(X), net(X), rtol=1e-10, atol=1e-10)


def _type_of_the_conv(m: Any, y: torch.Tensor) -> torch.Tensor:
    return y.relu() if isinstance(m.first.conv, nn.Conv2d) else y


@pytest.mark.parametrize("norms", ["keep", "absorb"])
def test_branching_refuses_where_code_would_go_another_way(norms: Any) -> None:
    net = randomise(Reading(_type_of_the_conv if norms == "keep" else _type_of_a_child).double())
    with pytest.raises(InputError):
        reparam.branch(net, "repvgg", norms=norms)
    wide = reparam.branch(net, "repvgg", norms=norms, where="second")
    torch.testing.assert_close(wide.eval()(X), net(X), rtol=1e-10, atol=1e-10)
