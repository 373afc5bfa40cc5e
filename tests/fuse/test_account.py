"""A plan never contradicts itself: what is in a region is not refused, what is left is, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import reparam
from accounting import unaccounted, unaccounted_norms
from reparam import Why
from reparam.frontends.torch.rules import lift
from reparam.frontends.torch.skeleton import shared_copy
from reparam.frontends.torch.trace import TraceFailure, trace
from small_nets import Lambda, conv, image, norm
from strategies import Network, networks
from zoo import CASES, ZooCase, randomise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def check(model: nn.Module, x: torch.Tensor | None) -> reparam.Plan:
    """Plan and raise if anything is in both lists or in neither."""
    plan = reparam.plan(model, x)
    assert unaccounted_norms(model, plan) == [], str(plan)
    try:
        traced = trace(shared_copy(model), example=None if x is None else ((x,), {}))
    except TraceFailure:
        return plan
    assert unaccounted(plan, lift(traced)) == [], str(plan)
    return plan


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_every_block_of_the_zoo(case: ZooCase, *, with_example: bool) -> None:
    check(case.module(), case.inputs() if with_example else None)


@given(net=networks(), with_example=st.booleans())
def test_on_random_networks(*, net: Network, with_example: bool) -> None:
    check(net.model, net.inputs() if with_example else None)


# ------------------------------------------------------------------------------- by hand


class Frozen(nn.Module):
    """A batch normalisation by hand, which reads its weight twice."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean"):
            self.register_buffer(name, torch.randn(1, channels, 1, 1))
        self.register_buffer("var", torch.rand(1, channels, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.var + 1e-5).rsqrt()
        return x * scale + (self.bias - self.mean * scale)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


class Auxiliary(nn.Module):
    """The branch that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = conv(), norm(), norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return self.head(y) if self.training else y


class Normalised(nn.Module):
    """Takes images from 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(4, 1, 1))
        self.register_buffer("std", torch.rand(4, 1, 1) + 0.5)
        self.conv = conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv((x - self.mean) / self.std)


def hooked_on_the_way() -> nn.Module:
    net = nn.Sequential(conv(), nn.Upsample(scale_factor=2), norm())
    net[1].register_forward_hook(lambda *_: None)
    return net


BOTTLENECK = [
    conv(4, 32, 1), norm(32), nn.ReLU(), conv(32, 16, 1), norm(16), conv(16, 96, 1), norm(96),
]  # fmt: skip


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        pytest.param(lambda: nn.Sequential(*BOTTLENECK), set(), id="a bottleneck that folds"),
        pytest.param(lambda: nn.Sequential(conv(), Frozen()), set(), id="a norm by hand"),
        pytest.param(Auxiliary, {Why.NOT_CALLED}, id="a branch that is not taken"),
        pytest.param(
            lambda: Lambda(
                lambda m, x: torch.stack([m.b(m.a(x)), m.c(x)]).amax(0), conv(), norm(), norm()
            ),
            {Why.STACKED, Why.NO_LAYER_BESIDE},
            id="branches that are stacked",
        ),
        pytest.param(
            lambda: Lambda(
                lambda m, x: ((y := m.b(m.a(x))) + m.c(x), y), conv(), norm(), conv(bias=True)
            ),
            {Why.IS_SEEN},
            id="a branch that is an output too",
        ),
        pytest.param(hooked_on_the_way, {Why.HOOKED}, id="a hook on the way of a norm"),
        pytest.param(
            lambda: Lambda(
                lambda m, x: m.b(m.a(x).transpose(2, 3)).view(x.shape[0], -1), conv(), norm()
            ),
            {Why.VIEWED},
            id="a view behind a permuted norm",
        ),
        pytest.param(
            lambda: Lambda(lambda m, x: m.b(x) + m.c(x), norm(), norm(), norm()),
            {Why.NO_LAYER_BESIDE, Why.NOT_CALLED},
            id="branches without a layer",
        ),
    ],
)
def test_by_hand(make: Callable[[], nn.Module], kinds: set[Why], *, with_example: bool) -> None:
    model = randomise(make().double()).eval()
    plan = check(model, image() if with_example else None)
    assert {refusal.reason.kind for refusal in plan.refusals} == kinds


@pytest.mark.parametrize(
    ("shown", "kind"), [(True, Why.NO_LAYER_BESIDE), (False, Why.UNKNOWN_CHANNELS)]
)
def test_the_channels_of_an_input_are_known_from_an_example(*, shown: bool, kind: Why) -> None:
    """Behind it the padding keeps the shift where it is, and lets the scale through."""
    plan = check(randomise(Normalised().double()).eval(), image() if shown else None)
    assert kind in {refusal.reason.kind for refusal in plan.refusals}
    assert len(plan.regions) == shown


@pytest.mark.parametrize("example", [None, image()], ids=["without an example", "with one"])
def test_a_norm_of_its_own_is_told_once(example: torch.Tensor | None) -> None:
    plan = check(randomise(nn.Sequential(conv(), OwnNorm(4)).double()).eval(), example)
    assert len(plan.refusals) == 1


def test_the_check_notices_what_is_missing_or_told_twice() -> None:
    net = randomise(nn.Sequential(conv(), nn.ReLU(), norm(), nn.ReLU(), conv(), norm()).double())
    plan, lifted = reparam.plan(net.eval()), lift(trace(shared_copy(net)))
    (refusal,) = plan.refusals
    twice = dataclasses.replace(refusal, where="5")
    for other in ((), (refusal, refusal), (refusal, twice)):
        wrong = dataclasses.replace(plan, refusals=other)
        assert len(unaccounted(wrong, lifted)) == len(unaccounted_norms(net, wrong)) == 1
