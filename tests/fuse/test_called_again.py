"""Layers that a forward calls again and again, each time one behind the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import reparam
from reparam import Why
from small_nets import Lambda, check, conv, image, norm

if TYPE_CHECKING:
    from collections.abc import Callable

ALIKE = {
    "in a comprehension": lambda s, x: torch.stack([s.b(s.a(v[None])) for v in x]),
    "of parts": lambda s, x: torch.cat([s.b(s.a(v)) for v in x.chunk(2, 3)], 3),
    "in a loop": lambda s, x: sum(s.b(s.a(x * k)).relu() for k in (1, 2, 3)),
    "of each other": lambda s, x: s.b(s.a(s.b(s.a(x)).relu())).relu(),
    "of two levels": lambda s, x: [s.b(s.a(y)) for y in (x, x.mean((2, 3), keepdim=True))],
    "with what does nothing between": lambda s, x: [s.b(s.c(s.a(y))) for y in (x, x.relu())],
}


@pytest.mark.parametrize("forward", ALIKE.values(), ids=ALIKE)
def test_a_layer_and_a_norm_that_every_call_has_are_one_layer(
    forward: Callable[..., object],
) -> None:
    net = Lambda(forward, conv(), norm(), nn.Dropout())
    fused = check(net, image(), image(2, 4, 6, 10), norms=0)
    assert isinstance(fused.a, nn.Conv2d)
    assert isinstance(fused.b, nn.Identity)
    assert len(reparam.plan(net, image()).regions) == 1


def test_a_linear_layer_and_its_norm_that_run_for_each_of_a_list() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([net.b(net.a(v.mean((-1, -2)))) for v in x.unbind(2)])

    net = Lambda(forward, nn.Linear(4, 4), nn.BatchNorm1d(4))
    check(net, image(2, 4, 3, 9, 8), norms=0)


APART = {
    "once without its norm": lambda s, x: (s.b(s.a(x)), s.a(x.relu())),
    "once without its layer": lambda s, x: (s.b(s.a(x)), s.b(x.relu())),
    "once the other way round": lambda s, x: (s.b(s.a(x)), s.a(s.b(x.relu()))),
    "once with something between": lambda s, x: (s.b(s.a(x)), s.b(s.a(x).relu())),
    "once seen between": lambda s, x: (s.b(s.a(x)), s.b(y := s.a(x.relu())), y.sigmoid()),
    "once with a scale between": lambda s, x: (s.b(s.a(x)), s.b(s.a(x.relu()) * 2)),
    "its weight is read": lambda s, x: (s.b(s.a(x)), s.b(s.a(x.relu())), s.a.weight.sum()),
}


@pytest.mark.parametrize("forward", APART.values(), ids=APART)
def test_layers_that_some_calls_use_otherwise_stay(forward: Callable[..., object]) -> None:
    norms = 1 if forward is APART["once without its norm"] else 2
    check(Lambda(forward, conv(padding=0, k=1), norm()), image(), norms=norms)


def test_a_hook_on_what_is_called_again_keeps_it() -> None:
    net = Lambda(ALIKE["in a loop"], conv(), norm())
    net.a.register_forward_hook(lambda *_: None)
    check(net, image(), norms=3, because=Why.HOOKED)


def test_branches_that_are_called_again_are_told_so() -> None:
    """Their sum is written in the forward, once for each call."""

    def forward(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        return [net.a(y) + net.b(y) for y in (x, x.relu())]

    check(Lambda(forward, conv(), conv(k=1)), image(), convs=4, because=Why.SHARED_MODULE)
