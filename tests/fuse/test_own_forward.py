"""A convolution that runs its own forward takes over a norm where it is linear in its weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam import Why
from zoo import randomise

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def own(base: type[nn.Module], change: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    """A subclass whose forward no trace can follow, and that changes its output."""

    class Own(base):
        def forward(self, x: Tensor) -> Tensor:
            return change(super().forward(x)) if float(x.detach().sum()) > -1e30 else x

    return Own


def _of_one_size(y: Tensor) -> Tensor:
    if y.shape[-1] not in {11, 15}:  # of an input of 13, convolved or transposed
        message = f"makes 11 or 15 pixels, not {y.shape[-1]}"
        raise ValueError(message)
    return y


def net(layer: nn.Module, dims: int) -> nn.Module:
    return randomise(nn.Sequential(layer, NORMS[dims](4), nn.ReLU()).double()).eval()


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kinds", [CONVS, TRANSPOSED], ids=["convolution", "transposed"])
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda y: 2 * y, Why.FOLD_DIFFERS),
        (torch.relu, Why.FOLD_DIFFERS),
        (lambda y: y / y.std(), Why.FOLD_DIFFERS),
        (_of_one_size, Why.FORWARD_FAILED),
        (lambda y: y, None),
    ],
    ids=["scaled", "activated", "standardised", "of one size", "as it was"],
)
def test_the_plan_knows_what_its_own_forward_makes_of_the_weight(
    change: Callable[[Tensor], Tensor],
    kind: Why | None,
    kinds: dict[int, type[nn.Module]],
    *,
    groups: int,
    dims: int,
    with_example: bool,
) -> None:
    model = net(own(kinds[dims], change)(4, 4, 3, groups=groups), dims)
    x = torch.randn(2, 4, *(13,) * dims, dtype=torch.float64)
    if kind is Why.FORWARD_FAILED and not with_example:
        kind = Why.NOT_COMPARED  # nothing is known that it runs on
    plan = reparam.plan(model, x if with_example else None)
    assert [r.reason.kind for r in plan.refusals if r.where == "1"] == [kind] * bool(kind)
    assert len(plan.regions) == (kind is None)
    fused = plan.apply()  # warns of what the plan did not know; warnings are errors here
    torch.testing.assert_close(fused(x), model(x), rtol=0, atol=1e-12)


class Standardised(nn.Conv2d):
    """Reads its weight as something else than it stores, and cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.std() if float(x.detach().sum()) > -1e30 else 1
        return self._conv_forward(x, self.weight / scale, self.bias)


class SamePadded(nn.Conv2d):
    """Pads by the size of its input, as TensorFlow does: linear in its weight."""

    def forward(self, x: Tensor) -> Tensor:
        rest = [-size % 2 for size in x.shape[2:]]
        return super().forward(F.pad(x, [rest[1], 1, rest[0], 1]))


@pytest.mark.parametrize(("kind", "folds"), [(Standardised, 0), (SamePadded, 1)])
def test_a_weight_that_is_not_read_as_it_is_stored(kind: type[nn.Module], folds: int) -> None:
    model = net(kind(4, 4, 3, stride=2), 2)
    plan = reparam.plan(model)
    assert len(plan.regions) == folds
    assert [r.where for r in plan.refusals].count("1") == 1 - folds
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(plan.apply()(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("base", [nn.Linear, nn.BatchNorm1d])
def test_siblings_are_told_by_the_plan_too(base: type[nn.Module]) -> None:
    parts = [nn.Linear(4, 4), nn.BatchNorm1d(4)]
    at = [nn.Linear, nn.BatchNorm1d].index(base)
    twice = own(base, lambda y: 2 * y)
    parts[at] = twice(4, 4) if base is nn.Linear else twice(4)
    model = randomise(nn.Sequential(*parts).double()).eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    plan = reparam.plan(model, x)
    assert not plan.regions
    assert [r.where for r in plan.refusals].count("1") == 1
    torch.testing.assert_close(plan.apply()(x), model(x), rtol=0, atol=1e-12)
