"""Sums in which a value meets itself again, and scales before transposed convolutions."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import reparam
from checking import assert_same_function
from counting import count
from small_nets import TOLERANCE, Lambda, check, conv, image, norm
from zoo import randomise

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHT = torch.tensor([0.3, -0.5, 1.2, 2.0], dtype=torch.float64).view(4, 1, 1)


def blended(blend: Callable[..., torch.Tensor], *parts: nn.Module) -> Lambda:
    """Two branches of one value, the second with a norm, and what is made of both."""
    net = Lambda(
        lambda s, x: blend(s, s.a(x), s.c(s.b(x))), *(parts or (conv(), conv(k=1))), norm()
    )
    net.register_buffer("w", WEIGHT)
    return net


BLENDS = {
    "by a number": lambda _, a, b: a + 0.3 * (b - a),
    "by numbers of channels": lambda s, a, b: a + s.w * (b - a),
    "the other way round": lambda _, a, b: b - (b - a) * 0.3,
    "over two": lambda _, a, b: a + (b - a) / 2,
    "twice": lambda _, a, b: (a + 0.3 * (b - a)) * 2 - b,
    "in itself": lambda _, a, b: a + (b - a) * 0.5 - 0.25 * a,
    "out of place": lambda _, a, b: torch.add(a, torch.sub(b, a), alpha=0.3),
}


@pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)
@pytest.mark.parametrize("example", [True, False])
def test_a_plus_w_times_b_minus_a_is_one_layer(
    blend: Callable[..., torch.Tensor], *, example: bool
) -> None:
    check(blended(blend), convs=1, norms=0, example=example)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_branches_with_stride_groups_and_dilation_meet_again(step: int, groups: int) -> None:
    how = {"stride": step, "groups": groups}
    net = blended(BLENDS["by a number"], conv(**how, dilation=2, padding=2), conv(k=1, **how))
    check(net, convs=1, norms=0)


STAYS = {
    "a is read elsewhere": lambda _, a, b: (a + 0.3 * (b - a), a.relu()),
    "the difference is": lambda _, a, b: (a + 0.3 * (d := b - a), d.relu()),
    "the weight is of the input": lambda _, a, b: a + a.mean().sigmoid() * (b - a),
    "something is between": lambda _, a, b: a + 0.3 * (b - a).relu(),
}


@pytest.mark.parametrize("blend", STAYS.values(), ids=STAYS)
def test_what_is_seen_or_bent_on_the_way_stays(blend: Callable[..., torch.Tensor]) -> None:
    check(blended(blend), convs=2)


def test_a_value_that_meets_itself_is_not_paid_twice() -> None:
    """Behind a 1x1 layer with few outputs a dense layer would cost more than both."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = net.b(net.a(x)), net.c(x)
        return a + 0.3 * (b - a)

    narrow, wide = conv(8, 1, k=1), conv(1, 8, k=3, padding=1)
    net = Lambda(forward, narrow, wide, conv(8, 8, k=1, groups=8))
    check(net, image(2, 8, 9, 8), convs=3)


KINDS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = {
    "stride 2": {"kernel_size": 4, "stride": 2, "padding": 1},
    "output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "gaps": {"kernel_size": 2, "stride": 3},
    "dilated": {"kernel_size": 3, "stride": 2, "dilation": 2},
    "stride 1": {"kernel_size": 3},
    "one tap": {"kernel_size": 1, "stride": 2},
}


@pytest.mark.parametrize("how", TRANSPOSED.values(), ids=TRANSPOSED)
@pytest.mark.parametrize(("dims", "groups"), [*itertools.product((1, 2, 3), (1, 2, 4))])
def test_a_scale_goes_into_a_transposed_convolution(
    how: dict[str, int], dims: int, groups: int
) -> None:
    net = Lambda(lambda s, x: s.a(x.relu() * s.w), KINDS[dims - 1](4, 8, groups=groups, **how))
    net.register_buffer("w", WEIGHT.view(4, *(1,) * dims))
    fused = check(net, *(image(n, 4, *(5, 4, 3)[:dims]) for n in (2, 3)))
    assert not count(fused, image(2, 4, *(5, 4, 3)[:dims]))[1].others["mul"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_scale_goes_into_a_transposed_convolution_of_any_type(dtype: torch.dtype) -> None:
    net = randomise(Lambda(lambda s, x: s.a(x * 0.5), nn.ConvTranspose2d(4, 4, 2, 2)))
    fused = reparam.fuse(net.to(dtype), image().to(dtype))
    wide = [m.double() for m in (net, fused)]
    assert not count(wide[1], image())[1].others["mul"]
    assert_same_function(*wide, image(), tolerance=TOLERANCE)  # halves are exact in every type


def test_scales_before_two_transposed_convolutions_that_are_added() -> None:
    how = {"kernel_size": 4, "stride": 2, "padding": 1}

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.relu() * 0.3 / 2
        return net.a(x) + net.c(net.b(x))

    parts = nn.ConvTranspose2d(4, 4, **how), nn.ConvTranspose2d(4, 4, **how), norm()
    fused = check(Lambda(forward, *parts), norms=0)
    assert set(count(fused, image())[1].others) == {"relu"}


SEEN = {
    "a shift": lambda s, x: s.a(x.relu() + s.w),
    "a norm": lambda s, x: s.a(s.b(x.relu())),
    "another reader": lambda s, x: (s.a(y := x.relu() * s.w), y.sigmoid()),
    "another layer that is called so": lambda s, x: s.a(x.relu() * s.w).mean() + s.a(x).mean(),
}


@pytest.mark.parametrize("forward", SEEN.values(), ids=SEEN)
def test_what_a_transposed_convolution_does_not_see_alike_stays(
    forward: Callable[..., object],
) -> None:
    net = Lambda(forward, nn.ConvTranspose2d(4, 4, 4, 2, 1), norm())
    net.register_buffer("w", WEIGHT)
    net = randomise(net.double())
    fused = reparam.fuse(net, image())
    assert_same_function(net, fused, image(), tolerance=TOLERANCE)
    before, after = (count(m, image())[1] for m in (net, fused))
    assert before.others == after.others
    assert before.norms == after.norms


def test_a_norm_passes_what_makes_equal_channels_of_one() -> None:
    """In front; behind, each of them has factors of its own."""
    xs = image(2, 1, 9, 8), image(3, 1, 6, 11)
    for sizes in ((-1, 4, -1, -1), ((-1, 4, -1, -1),)):
        ahead = Lambda(
            lambda s, x, sizes=sizes: s.b(s.a(x.relu()).expand(*sizes)), norm(1), conv(4, 3, k=1)
        )
        check(ahead, *xs, norms=0)
    behind = Lambda(lambda s, x: s.b(s.a(x).expand(-1, 4, -1, -1)).relu(), conv(1, 1), norm())
    check(behind, *xs, norms=1)
    padded = Lambda(lambda s, x: s.b(s.a(x.relu()).expand(-1, 4, -1, -1)), norm(1), conv())
    check(padded, *xs, norms=1)


UP = {
    "contained": ({"kernel_size": 4, "padding": 1}, {"kernel_size": 2}),
    "output padding": ({"kernel_size": 3, "padding": 1, "output_padding": 1}, {"kernel_size": 2}),
    "dilated": (
        {"kernel_size": 5, "padding": 2, "output_padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "output_padding": 1},
    ),
    "stride 3": (
        {"kernel_size": 4, "padding": 1, "output_padding": 1, "stride": 3},
        {"kernel_size": 3, "stride": 3},
    ),
}


def ups(hows: tuple[dict[str, int], ...], dims: int = 2, **more: object) -> list[nn.Module]:
    return [KINDS[dims - 1](4, 4, **{"stride": 2, **how, **more}) for how in hows]


@pytest.mark.parametrize("hows", UP.values(), ids=UP)
@pytest.mark.parametrize(("dims", "groups"), [*itertools.product((1, 2, 3), (1, 2, 4))])
@pytest.mark.parametrize("turn", [1, -1])
def test_transposed_convolutions_of_one_stride_are_one_with_the_taps_of_all(
    hows: tuple[dict[str, int], ...], dims: int, groups: int, turn: int
) -> None:
    net = Lambda(lambda s, x: s.a(x) - 0.5 * s.b(x), *ups(hows[::turn], dims, groups=groups))
    check(net, *(image(n, 4, *(5, 4, 3)[:dims]) for n in (2, 3)), convs=1)


def test_scales_and_norms_around_transposed_convolutions_of_different_sizes() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return net.a(x * 2) + net.c(net.b(x / 3)) + net.d(x)

    wide, narrow = ups(UP["contained"])
    parts = wide, narrow, norm(), ups(UP["output padding"])[0]
    check(Lambda(forward, *parts), convs=1, norms=0)


APART = {
    "of other groups": (lambda s, x: s.a(x) + s.b(x), {"groups": 2}, {}),
    "of other values": (lambda s, x: s.a(x) + s.b(x.relu()), {}, {}),
    "one is read": (lambda s, x: (s.a(x) + (y := s.b(x)), y.relu()), {}, {}),
    "one has a tap of its own": (
        lambda s, x: s.a(x) + s.b(x),
        {"kernel_size": 2, "stride": 3, "padding": 1, "output_padding": 2},
        {"kernel_size": 2, "stride": 3},
    ),
}


@pytest.mark.parametrize(("forward", "first", "second"), APART.values(), ids=APART)
def test_transposed_convolutions_that_are_not_one_stay(
    forward: Callable[..., object], first: dict[str, int], second: dict[str, int]
) -> None:
    wide, narrow = UP["contained"]
    check(Lambda(forward, *ups(({**wide, **first}, {**narrow, **second}))), convs=2)
