"""branch: everything else of the model is as it was, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from branching_nets import EXACT, F64, OF_3X3, Net, X, difference
from reparam.branching import (
    BranchSum,
    branch,
    mobileone,
    plan_branching,
)
from reparam.errors import InputError, UnsupportedModelError


@pytest.fixture
def net() -> Net:
    return Net().to(F64).eval()


# ------------------------------------------------------------------------------- the model around


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).to(dtype).eval()
    wide = branch(conv, "dbb")
    floats = {t.dtype for t in wide.state_dict().values() if t.is_floating_point()}
    assert floats == {dtype}
    x = torch.randn(2, 4, 7, 7, dtype=dtype)
    # Four branches are rounded and added; each rounds to about eps of the output's scale.
    bound = 16 * torch.finfo(dtype).eps * conv(x).abs().max().item()
    assert difference(conv, wide, x) <= bound


def test_hooks_attributes_modes_and_freezing_are_taken_over(net: Net) -> None:
    calls: list[str] = []
    net.shared.register_forward_hook(lambda *_: calls.append("after"))
    net.shared.register_forward_pre_hook(lambda *_: calls.append("before"))
    net.shared.label = "mine"
    net.shared.train().requires_grad_(False)
    wide = branch(net)
    assert wide.shared.label == "mine"
    assert wide.shared.training
    assert wide.shared.branches["conv3x3"].training
    assert not any(p.requires_grad for p in wide.shared.parameters())
    assert wide.shared.in_channels == 8
    assert wide.shared.padding == (1, 1)
    wide(torch.randn(X, dtype=F64))
    assert calls == ["before", "after"] * 2


@pytest.mark.parametrize("kind", OF_3X3)
def test_blocks_trace_and_every_branch_learns(kind: str) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).to(F64)
    wide = branch(conv, kind)
    x = torch.randn(3, 4, 8, 8, dtype=F64)
    traced = fx.symbolic_trace(copy.deepcopy(wide).eval())
    assert difference(traced, wide.eval(), x) == 0
    wide.train()(x).pow(3).sum().backward()
    for name, parameter in wide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_generator_repeats_and_leaves_the_global_one() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    state = torch.get_rng_state()
    one, two = (branch(conv, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = branch(conv, generator=torch.Generator().manual_seed(8))
    weights = (w.branches["conv1x1"].conv.weight for w in (one, other))
    assert not torch.equal(*weights)


def test_a_pruned_channel_can_still_learn() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).to(F64).eval()
    with torch.no_grad():
        conv.weight[1].zero_()
    wide = branch(conv)
    assert difference(conv, wide, torch.randn(2, 4, 8, 8, dtype=F64)) <= EXACT
    assert (wide.branches["conv1x1"].bn.weight > 0).all()
    nn.init.zeros_(conv.weight)
    assert difference(conv, branch(conv), torch.randn(2, 4, 8, 8, dtype=F64)) <= EXACT


def test_wrappers_are_opened() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    assert isinstance(branch(nn.DataParallel(conv)), BranchSum)
    assert isinstance(branch(torch.compile(conv)), BranchSum)


# ------------------------------------------------------------------------------ choice and refusal


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("shared", ["shared"]),
        ("stem", ["stem.0"]),
        (["stem.*", "shared"], ["stem.0", "shared"]),
        ("s*", ["stem.0", "shared"]),
        (lambda name, conv: name != "shared" and conv.kernel_size == (3, 3), ["stem.0"]),
    ],
    ids=["name", "container", "several", "glob", "predicate"],
)
def test_where_chooses(net: Net, where: Any, chosen: list[str]) -> None:
    plan = plan_branching(net, where=where)
    assert [region.where for region in plan.regions] == chosen
    wide = plan.apply()
    found = [name for name, m in wide.named_modules() if isinstance(m, BranchSum)]
    assert found == chosen


def test_a_misspelt_name_is_an_error_with_a_hint(net: Net) -> None:
    with pytest.raises(InputError, match="did you mean 'shared'"):
        branch(net, where="shard")


def test_refusals_say_where_and_why(net: Net) -> None:
    plan = plan_branching(net)
    assert [region.where for region in plan.regions] == ["stem.0", "shared"]
    assert plan.regions[1].branches == ("conv3x3", "conv1x1", "identity")
    assert plan.regions[0].branches == ("conv3x3", "conv1x1")
    assert {r.where: r.why.split(";")[0] for r in plan.refusals} == {
        "pointwise": "a 1x1 kernel has no smaller one to stand beside it",
        "up": "ConvTranspose2d is not a plain convolution (Conv1d, Conv2d, Conv3d)",
    }
    shown = str(plan)
    assert "stem.0  3x3 conv 3->8, stride 2, padding 1: conv3x3 + conv1x1" in shown
    assert "2 left alone" in shown


def _standardised() -> nn.Module:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    return Standardised(4, 4, 3)


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    net[1].weight = net[0].weight
    return net


def _not_finite() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = float("inf")
    return conv


def _state_hook() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    conv.register_load_state_dict_post_hook(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("make", "kind", "why"),
    [
        (lambda: nn.Conv2d(4, 4, 1), "repvgg", "1x1 kernel"),
        (lambda: nn.Conv2d(4, 4, 1), "dbb", "1x1 kernel"),
        (lambda: nn.Conv2d(4, 4, (1, 3)), "acnet", "1x3 kernel has no cross"),
        (lambda: nn.Conv1d(4, 4, 3), "acnet", "no cross"),
        (lambda: nn.Conv2d(4, 8, 1), mobileone(1), "nothing beside it"),
        (lambda: nn.Linear(4, 4), "repvgg", "no convolution was chosen"),
        (lambda: nn.ConvTranspose2d(4, 4, 3), "repvgg", "not a plain convolution"),
        (_standardised, "repvgg", "a forward of its own"),
        (
            lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
            "repvgg",
            "parametrization",
        ),
        (lambda: nn.LazyConv2d(4, 3), "repvgg", "lazy"),
        (_tied, "repvgg", "0.weight, 1.weight are one parameter"),
        (_not_finite, "repvgg", "not finite"),
        (_state_hook, "repvgg", "state-dict hooks"),
        (lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64), "repvgg", "complex64"),
    ],
)
def test_nothing_to_branch_raises_with_the_reason(make: Callable[[], Any], kind, why: str) -> None:
    with pytest.raises(InputError, match=why):
        branch(make(), kind)


def test_what_cannot_be_read_or_used_is_refused() -> None:
    conv = nn.Conv2d(4, 4, 3)
    with pytest.raises(InputError, match="no kind of branching is named 'vgg'"):
        branch(conv, "vgg")
    with pytest.raises(InputError, match="calibrate is empty"):
        branch(conv, calibrate=[])
    with pytest.raises(InputError, match="at least one kxk"):
        mobileone(0)

    class NoCopy(nn.Sequential):
        def __deepcopy__(self, memo: object) -> NoCopy:
            raise TypeError("locked")

    with pytest.raises(UnsupportedModelError, match=r"NoCopy cannot be copied.*: locked"):
        branch(NoCopy(conv))
