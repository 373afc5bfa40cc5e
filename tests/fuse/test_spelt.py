"""Layers and sums by other names: products, einsum, stacks, lerp, arithmetic on the input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from checking import assert_same_function
from counting import count
from reparam import Why
from small_nets import TOLERANCE, Lambda, check, conv, image, norm
from zoo import randomise


class Gated(Lambda):
    """A net with parameters of its own: a matrix, and numbers for each channel."""

    def __init__(self, forward: object, *parts: nn.Module) -> None:
        super().__init__(forward, *parts)
        rng = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(3, 4, generator=rng))
        self.p = nn.Parameter(torch.rand(1, 4, 1, 1, generator=rng) + 0.5)
        self.q = nn.Parameter(torch.rand(4, 1, 1, generator=rng) + 0.5)


# ------------------------------------------------------------------------------ sums


SUMS = {
    "stack, sum": lambda a, b: torch.stack([a, b]).sum(0),
    "stack, mean": lambda a, b: torch.stack((a, b), dim=1).mean(1),
    "stack, mean from behind": lambda a, b: torch.stack([a, b], -1).mean(dim=-1),
    "stack, mean as in NumPy": lambda a, b: torch.stack([a, b], -1).mean(axis=-1, keepdims=False),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "lerp method": lambda a, b: a.lerp(b, weight=-1.5),
    "sum": lambda a, b: sum([a, b]),
}


@pytest.mark.parametrize("add", SUMS.values(), ids=SUMS)
def test_branches_are_added_in_other_ways(add: object) -> None:
    net = Lambda(lambda s, x: add(s.c(s.a(x)), s.b(x)), conv(), conv(k=1, bias=True), norm())
    check(net, convs=1, norms=0)


def test_linear_branches_are_stacked_along_any_axis() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = x.permute(0, 2, 3, 1)
        return torch.stack([net.a(x), net.b(x)], 3).mean(3)

    check(Lambda(forward, nn.Linear(4, 3), nn.Linear(4, 3)))


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: torch.stack([a, b]).sum(1),
        lambda a, b: torch.stack([a, b]).mean((0, 2)),
        lambda a, b: torch.stack([a, b]).sum(0, keepdim=True),
        lambda a, b: torch.stack([a, b]).sum(axis=0, keepdims=True),
        lambda a, b: torch.stack([a, b]).amax(0),
        lambda a, b: torch.stack([a, b]).sum(),
        lambda a, b: (torch.stack([a, b]).sum(0, dtype=torch.float64), a),
    ],
    ids=range(7),
)
def test_stacks_that_are_read_otherwise_are_left(join: object) -> None:
    net = Lambda(lambda s, x: join(s.a(x), s.b(x)), conv(), conv(k=1))
    check(net, convs=2, because=Why.STACKED)


def test_a_lerp_by_a_weight_of_the_input_is_left() -> None:
    net = Lambda(lambda s, x: torch.lerp(s.a(x), s.b(x), x.sigmoid()), conv(), conv(k=1))
    check(net, convs=2)


@pytest.mark.parametrize("gate", ["p", "q"])
def test_a_gate_of_constants_between_a_layer_and_its_input(gate: str) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x, a = x.relu(), getattr(net, gate)
        return x * (1 - a) + net.a(x) * a

    check(Gated(forward, conv(bias=True)), convs=1)


# ------------------------------------------------------------------------------ products


PRODUCTS = {
    "channels second": lambda x, w: torch.einsum("bchw,oc->bohw", x, w),
    "weight first": lambda x, w: torch.einsum("oc,bchw->bohw", w, x),
    "turned": lambda x, w: torch.einsum("bchw, co -> bohw", x, w.t()),
    "channels last": lambda x, w: torch.einsum("bhwc,oc->bhwo", x.permute(0, 2, 3, 1), w),
    "anything": lambda x, w: torch.einsum("...c,oc->...o", x.permute(0, 2, 3, 1), w),
    "one dimension": lambda x, w: torch.einsum("bcn,oc->bon", x.flatten(2), w),
    "product": lambda x, w: x.permute(0, 2, 3, 1) @ w.t(),
    "product from the left": lambda x, w: w @ x.flatten(2),
    "matmul": lambda x, w: torch.matmul(x.permute(0, 2, 3, 1), w.t()),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_a_norm_goes_into_a_product_with_a_constant(product: object) -> None:
    net = randomise(Gated(lambda s, x: product(s.a(x.relu()), s.w), norm()).double())
    fused = reparam.fuse(net, image())
    for x in (image(), image(3, 4, 5, 6)):
        assert_same_function(net, fused, x, tolerance=TOLERANCE)
    _, tally = count(fused, image())
    assert (tally.norms, tally.convs + tally.linears) == (0, 1)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: torch.einsum("bchw,bc->bhw", x, w[:2]),
        lambda x, w: torch.einsum("bchw,oc->bhwo", x, w),
        lambda x, w: torch.einsum("bchw,oc->bohw", x * x.mean(), w),
        lambda x, w: torch.einsum("bcnw,on->bcow", x[:, :, :4], w),
    ],
    ids=["no output", "another order", "not constant before", "positions"],
)
def test_products_of_another_kind_leave_the_norm(product: object) -> None:
    net = Gated(lambda s, x: product(s.a(x.relu()), s.w), norm())
    check(net, image(2, 4, 9, 8), norms=1)


# ------------------------------------------------------------------------------ the input


@pytest.mark.parametrize(
    "normalise",
    [
        lambda _, x: (x - 0.5) / 0.2,
        lambda s, x: (x - s.p) / s.q,
        lambda s, x: x.sub(s.q).div(s.p),
        lambda s, x: x * s.p + s.q,
    ],
    ids=range(4),
)
def test_the_normalisation_of_the_input_goes_into_an_unpadded_layer(normalise: object) -> None:
    net = Gated(lambda s, x: s.a(normalise(s, x)), conv(padding=0, bias=True))
    fused = check(net)
    assert [type(part) for part in fused.children()] == [nn.Conv2d]
    assert reparam.plan(net, image()).regions[0].layers_before == 3


def test_behind_padding_a_shift_of_the_input_stays_and_its_scale_goes() -> None:
    net = Gated(lambda s, x: s.a((x - s.p) / s.q), conv())
    check(net)
    (region,) = reparam.plan(net, image()).regions
    assert region.layers_before == 2


# ------------------------------------------------------------------------------ merged first


def changed_between(_: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x * 1
    return x.relu(), x.mul_(2).relu()


def changed_behind(_: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = x.relu(), x.relu()
    return first.add_(1), second


SCALES = {
    "addcmul": lambda s, x: torch.addcmul(s.p, x, s.q),
    "addcmul the other way round": lambda s, x: torch.addcmul(s.p, s.q, x, value=-2.0),
    "addcmul method": lambda s, x: s.p.expand(x.shape).clone().addcmul(x, s.q),
    "addcdiv": lambda s, x: torch.addcdiv(s.p, x, s.q, value=0.5),
    "addcdiv in place": lambda s, x: torch.addcdiv(s.q, x, s.p),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_a_scale_and_shift_in_one_function(scale: object) -> None:
    check(Gated(lambda s, x: scale(s, s.a(x)), conv()), convs=1, norms=0)


@pytest.mark.parametrize(
    "scale",
    [
        lambda s, x: torch.addcmul(x, x, s.p),
        lambda s, x: torch.addcdiv(s.p, s.q, x + 9),
        lambda s, x: torch.addcmul(s.p, x, x),
    ],
)
def test_products_of_values_in_one_function_are_left(scale: object) -> None:
    check(Gated(lambda s, x: s.b(scale(s, s.a(x)).relu()), conv(), norm()), norms=1)


TWINS = {
    "functions": lambda _, x: (F.relu(x), F.relu(x), F.relu(x)),
    "methods": lambda _, x: (x.sigmoid(), x.sigmoid(), x.sigmoid()),
    "behind aliases": lambda _, x: (x.relu(), x.contiguous().relu(), x.clone().relu()),
    "modules": lambda s, x: (s.d(x), s.e(x), s.d(x)),
}


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_branches_behind_equal_operations_fold(twins: object) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        first, second, third = twins(net, x)
        return net.a(first) + net.b(second) + net.c(third)

    parts = conv(), conv(k=1), norm(), nn.LeakyReLU(0.2), nn.LeakyReLU(0.2)
    check(Lambda(forward, *parts), convs=1, norms=0)


UNEQUAL = {
    "slopes": lambda _, x: (F.leaky_relu(x, 0.1), F.leaky_relu(x, 0.2)),
    "modules": lambda s, x: (s.c(x), s.d(x)),
    "learned": lambda s, x: (s.e(x), s.f(x)),
    "changed between": changed_between,
    "changed behind": changed_behind,
}


@pytest.mark.parametrize("pair", UNEQUAL.values(), ids=UNEQUAL)
def test_branches_behind_operations_that_only_look_equal_are_left(pair: object) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        first, second = pair(net, x)
        return net.a(first) + net.b(second)

    slopes = nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), nn.PReLU(4), nn.PReLU(4)
    check(Lambda(forward, conv(), conv(k=1), *slopes), convs=2)


def test_an_equal_operation_that_others_read_stays() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        first, second = x.relu(), x.relu()
        return net.a(first) + net.b(second), second

    check(Lambda(forward, conv(), conv(k=1)), convs=2)
