"""Forwards that write, compute with or ask for the numbers of modules inside of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from checking import Snapshot, assert_same_function
from counting import count
from reparam import Why
from small_nets import TOLERANCE, Lambda, conv, image, norm
from zoo import randomise

Forward = Callable[[Any, Any], Any]


def pair() -> nn.Sequential:
    return nn.Sequential(conv(), norm())


def copies_a_weight(m: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        m.a[0].weight.copy_(m.c[0].weight)
    return m.b(m.a(x).relu())


def writes_statistics(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.a[1].running_mean.copy_(x.mean((0, 2, 3)))
    return m.b(m.a(x).relu())


def writes_through_a_view(m: Any, x: torch.Tensor) -> torch.Tensor:
    m.a[1].running_mean.view(2, 2)[0].mul_(0.5)
    return m.b(m.a(x).relu())


def computes_with_a_weight(m: Any, x: torch.Tensor) -> torch.Tensor:
    if x.mean() > 100:  # so that it cannot be traced
        x = x * x.std()
    return m.b(F.conv2d(x, m.a[0].weight, padding=1).relu()) + m.a(x)


def hands_a_weight_on(m: Any, x: torch.Tensor) -> torch.Tensor:
    if x.mean() > 100:
        x = x * x.std()
    return m.b(m.a(x).relu()) * m.d(m.a[0].weight)


@pytest.mark.parametrize(
    ("how", "left", "why"),
    [
        (copies_a_weight, 1, {Why.NUMBERS_WRITTEN, Why.USED_ELSEWHERE}),
        (writes_statistics, 1, {Why.NUMBERS_WRITTEN}),
        (writes_through_a_view, 1, {Why.NUMBERS_WRITTEN}),
        (computes_with_a_weight, 1, {Why.USED_ELSEWHERE}),
        (hands_a_weight_on, 1, {Why.USED_ELSEWHERE}),
    ],
)
@pytest.mark.parametrize("example", [True, False])
def test_numbers_that_a_parent_writes_or_computes_with_stay(
    how: Forward, left: int, why: set[Why], *, example: bool
) -> None:
    """Only what depends on these numbers is left; the user's model is not written to."""
    parts = (pair(), pair(), pair()) if how is copies_a_weight else (pair(), pair())
    model = Lambda(how, *parts)
    model.d = Lambda(lambda _, weight: weight.mean())
    model = randomise(model.double())
    before = Snapshot.of(model)
    plan = reparam.plan(model, image() if example else None)
    fused = plan.apply()
    before.assert_unchanged(model)
    assert why <= {refusal.reason.kind for refusal in plan.refusals}
    assert count(copy.deepcopy(fused), image())[1].norms == left
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)


def asks_for_its_type(m: Any, x: torch.Tensor) -> torch.Tensor:
    x = x.to(m.a[0].weight.dtype).to(device=m.a[0].weight.device)
    return m.b(m.a(x).relu())


def asks_a_norm(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.b(m.a(x.to(m.a[1].weight.dtype)).relu())


def asks_a_branch(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.b((m.c(x.to(m.c[0].weight.dtype)) + m.a(x)).relu())


@pytest.mark.parametrize(
    ("how", "left"), [(asks_for_its_type, 0), (asks_a_norm, 1), (asks_a_branch, 0)]
)
def test_a_weight_that_is_asked_for_its_type_may_have_a_successor(how: Forward, left: int) -> None:
    """Where a layer is replaced where it stands, it can still be asked; branches are not added."""
    parts = (pair(), pair(), pair()) if how is asks_a_branch else (pair(), pair())
    model = randomise(Lambda(how, *parts).double())
    fused = reparam.fuse(model)
    tally = count(fused, image())[1]
    assert (tally.norms, tally.convs) == (left, len(parts))
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)
    assert fused.float()(image().float()).dtype is torch.float32


@pytest.mark.parametrize("example", [True, False])
def test_a_check_of_the_exact_type_of_the_input(*, example: bool) -> None:
    """A traced value is no tensor; what its code does then is not believed."""
    model = Lambda(lambda m, x: x if type(x) is not torch.Tensor else m.b(m.a(x)), conv(), norm())
    model = randomise(nn.Sequential(model).double())
    plan = reparam.plan(model, image() if example else None)
    assert Why.NOT_CALLED not in {refusal.reason.kind for refusal in plan.refusals}
    assert_same_function(model, plan.apply(), image(), tolerance=TOLERANCE)


class Runner(nn.Module):
    """Runs a module that it is handed, and does more in one call than in the other."""

    def forward(self, module: nn.Module, x: torch.Tensor, scale: float | None = None) -> Any:
        y = module(x)
        return y if scale is None else y * scale


@pytest.mark.parametrize("example", [True, False])
def test_less_folds_where_more_would_not_fold_in_every_call(*, example: bool) -> None:
    model = Lambda(lambda m, x: m.c(m.b, m.c(m.a, x).relu(), 2.0), pair(), pair(), Runner())
    model = randomise(model.double())
    fused = reparam.fuse(model, image() if example else None)
    assert count(fused, image())[1].norms == 0
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)
