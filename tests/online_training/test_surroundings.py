"""Merged blocks that others watch, change, transform, or share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune

import reparam
from reparam.branching.online.placing import regions_of
from stepping import assert_same_state, merged_by_force, randomised, train_both
from zoo.mobile import MobileOneBlock
from zoo.repvgg import RepVGGBlock


def _wide() -> nn.Module:
    return randomised(nn.Sequential(MobileOneBlock(6, 6, kernel=1), nn.ReLU()))


def _batches(steps: int) -> list[torch.Tensor]:
    return [torch.randn(4, 6, 5, 7, dtype=torch.float64) + 0.3 for _ in range(steps)]


def _first(net: nn.Module, kind: type) -> nn.Module:
    return next(module for module in net.modules() if type(module) is kind)


def _doubled(net: nn.Module) -> None:
    _first(net, nn.BatchNorm2d).register_forward_hook(lambda _module, _inputs, y: 2 * y)


def _pruned(net: nn.Module) -> None:
    prune.l1_unstructured(_first(net, nn.Conv2d), "weight", amount=0.5)  # before each forward


def _reparametrised(net: nn.Module) -> None:
    parametrizations.weight_norm(_first(net, nn.Conv2d))


def _exchanged(net: nn.Module) -> None:
    norm = _first(net, nn.BatchNorm2d)
    (name,) = (n for n, m in net.named_modules() if m is norm)
    other = nn.InstanceNorm2d(6, affine=True).double()
    other.load_state_dict({n: v for n, v in norm.state_dict().items() if n in {"weight", "bias"}})
    net.set_submodule(name, other)


@pytest.mark.parametrize("change", [_doubled, _pruned, _reparametrised, _exchanged])
def test_what_is_done_to_a_branch_afterwards_counts(change: Callable[[nn.Module], None]) -> None:
    wide = _wide()
    online = merged_by_force(wide)
    for net in (wide, online):
        change(net)
    train_both(wide, online, _batches(3))


@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm", "orthogonal"])
def test_parametrised_branches(kind: str) -> None:
    block = RepVGGBlock(6, 6)
    getattr(parametrizations, kind)(_first(block, nn.Conv2d))
    wide = block.double().train()
    before = copy.deepcopy(wide.state_dict())
    online = merged_by_force(wide)
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())
    assert list(regions_of(online))
    train_both(wide, online, _batches(3))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_norm_of_two_branches_follows_one_after_the_other(momentum: float | None) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.norm(self.conv(x))

    wide = randomised(Block())
    wide.norm.momentum = momentum
    train_both(wide, merged_by_force(wide), _batches(3))


def test_a_block_that_runs_twice() -> None:
    wide = _wide()
    online = merged_by_force(wide)
    twice = (nn.Sequential(net, nn.Tanh(), net) for net in (wide, online))
    train_both(*twice, _batches(3))


def test_a_block_that_runs_in_both_ways_before_one_backward_pass() -> None:
    wide = _wide()
    online = merged_by_force(wide)
    x, y = _batches(2)
    for net in (wide, online):
        first = net(x)
        with reparam.online_mode(net, "branches"):
            second = net(y)
        (first.sum() + second.square().sum() + net(x).square().sum()).backward()
    for expected, found in zip(wide.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-10)
    assert_same_state(wide, online)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_transformed_blocks_run_their_branches() -> None:
    wide = _wide().eval()
    online = merged_by_force(wide).eval()
    x, t = _batches(2)
    for net in (wide, online):
        for parameter in net.parameters():
            parameter.requires_grad_(False)
    found, expected = (
        (
            torch.func.grad(lambda x, net=net: net(x).square().sum())(x),
            torch.func.jvp(net, (x,), (t,)),
            torch.func.vmap(net)(torch.stack([x, t])),
            torch.jit.trace(net, x)(t),
        )
        for net in (online, wide)
    )
    torch.testing.assert_close(found, expected)
    tangents = []
    for net in (wide.train(), online.train()):
        with forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(net(forward_ad.make_dual(x, t))).tangent)
    torch.testing.assert_close(*tangents)
    assert_same_state(wide, online)
    assert online.eval().to("meta")(x.to("meta")).shape == x.shape
