"""Norms that no layer takes: one that takes the others, and one whose scale others take over.

Also transposed convolutions, which take each other, and branches that are added one by one with
something else between them.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from checking import assert_same_function
from counting import count
from reparam import Why
from reparam.algebra import evaluate
from small_nets import TOLERANCE, Lambda, check, conv, image, norm
from zoo import randomise

NORMS = {
    "behind each other": (lambda s, x: s.b(s.a(x.relu())).relu(), norm(), norm()),
    "without factors first": (
        lambda s, x: s.b(s.a(x.relu())).relu(), nn.BatchNorm2d(4, affine=False), norm()
    ),
    "three": (lambda s, x: s.c(s.b(s.a(x.relu()))).relu(), norm(), norm(), norm()),
    "added": (lambda s, x: (s.a(x.relu()) + s.b(x.relu())).relu(), norm(), norm()),
    "added to what they read": (lambda s, x: ((y := x.relu()) + s.a(y)).relu(), norm()),
    "subtracted, thrice": (
        lambda s, x: ((y := x.relu()) - 3 * s.a(y) - s.b(y)).relu(), norm(), norm()
    ),
    "a norm of norms": (
        lambda s, x: s.c(s.a(y := x.relu()) + s.b(y)).relu(), norm(), norm(), norm()
    ),
    "with numbers": (lambda s, x: (2 * s.a(x.relu() / 3 + 1) - 1).relu(), norm()),
    "functional": (
        lambda s, x: s.b(
            F.batch_norm(
                x.relu(), s.a.running_mean, s.a.running_var, s.a.weight, s.a.bias, False, 0.1,
                s.a.eps,
            )
        ).relu(),
        norm(), norm(),
    ),
    "past a pooling": (lambda s, x: s.b(F.avg_pool2d(s.a(x.relu()), 2)).relu(), norm(), norm()),
    "part of a cat": (
        lambda s, x: s.c(torch.cat([s.a(x), s.b(x.relu())], 1)).relu(),
        conv(4, 2), norm(), norm(6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NORMS.values(), ids=NORMS)
def test_norms_that_no_layer_takes_become_one(case: tuple) -> None:
    forward, *parts = case
    fused = check(Lambda(forward, *parts), norms=1)
    assert count(fused, image())[1].others["add"] == 0


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(nn.BatchNorm1d, (3, 4)), (nn.BatchNorm1d, (2, 4, 7)), (nn.BatchNorm3d, (2, 4, 3, 4, 2))],
)
def test_norms_of_every_dimension_become_one(kind: type, shape: tuple) -> None:
    net = Lambda(lambda s, x: s.b(s.a(x.relu())).relu(), kind(4), kind(4))
    check(net, image(*shape), norms=1)


def test_the_norm_that_stays_has_the_numbers_of_both() -> None:
    """By kernel: its own weight and bias make it the composition, its statistics stay."""
    net = randomise(Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), norm()).double())
    plan = reparam.plan(net, image())
    fused = plan.apply()
    (found,) = plan._discovery.regions
    op = evaluate(found.region.expression)
    for name, statistic in net.a.named_buffers():
        assert torch.equal(statistic, fused.a.get_buffer(name))
        assert statistic.data_ptr() != fused.a.get_buffer(name).data_ptr()
    scale = fused.a.weight / (fused.a.running_var + fused.a.eps).sqrt()
    torch.testing.assert_close(op.kernel.flatten(), scale, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        op.bias, fused.a.bias - scale * fused.a.running_mean, rtol=1e-13, atol=1e-15
    )
    assert plan.regions[0].parts == ("b",)
    assert [(r.where, r.reason.kind) for r in plan.refusals] == [("a", Why.NO_LAYER_BESIDE)]


def test_a_norm_takes_a_depthwise_layer_of_single_taps_but_not_its_padding() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        return net.b(net.a(x.relu())).relu()

    layer = conv(k=1, groups=4, bias=True)
    check(Lambda(forward, layer, norm()), norms=1, convs=0)
    padded = conv(k=1, groups=4, padding=1, padding_mode="reflect")
    check(Lambda(forward, padded, norm()))


APART = {
    "a relu between": (lambda s, x: s.b(s.a(x.relu()).relu()).relu(), 2),
    "read by another": (lambda s, x: (s.b(y := s.a(x.relu())).relu(), y.tanh()), 2),
    "an output": (lambda s, x: (s.b(y := s.a(x.relu())), y), 2),
    "twice the same": (lambda s, x: s.a(s.a(x.relu())), 2),
    "padding": (lambda s, x: s.b(F.pad(s.a(x.relu()), (1, 1, 1, 1))).relu(), 2),
    "other values": (lambda s, x: (s.a(x.relu()) + s.b(x.tanh())).relu(), 2),
}


@pytest.mark.parametrize("case", APART.values(), ids=APART)
def test_norms_that_only_look_like_neighbours_stay(case: tuple) -> None:
    forward, left = case
    check(Lambda(forward, norm(), norm()), norms=left)


def test_scales_without_a_norm_and_hooked_norms_stay() -> None:
    check(Lambda(lambda _, x: (3 * x.relu() + 1) / 2), norms=0)
    net = Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), norm())
    net.b.register_forward_hook(lambda *_: None)
    check(net, norms=2, because=Why.HOOKED)


def test_a_norm_of_half_precision_stays_one() -> None:
    net = randomise(Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), norm())).bfloat16().eval()
    fused = reparam.fuse(net, image().bfloat16())
    assert fused.a.weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        fused(image().bfloat16()), net(image().bfloat16()), rtol=0.05, atol=0.1
    )


# ------------------------------------------------------------------------------ norms on a term


def mixer(k: int = 3, last: nn.Module | None = None) -> Lambda:
    """conv, norm, [depthwise conv, norm] beside it, 1x1 conv, as ConvMixer has them."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        v = net.b(net.a(x).relu())
        return net.e(net.d(net.c(v).relu()) + v).relu()

    return Lambda(forward, conv(), norm(), conv(k=k, groups=4), norm(), last or conv(k=1))


@pytest.mark.parametrize("k", [3, 5, 7])
def test_a_norm_on_a_term_goes_behind_the_sum_where_others_take_its_inverse(k: int) -> None:
    check(mixer(k), norms=1, because=Why.OUTPUT_ALSO_READ)
    check(mixer(k, conv(k=3, stride=2, padding=0)), norms=1)


@pytest.mark.parametrize(
    "add",
    [
        lambda h, v: h + v, lambda h, v: v - h, lambda h, v: torch.add(h, v, alpha=-2),
        lambda h, v: torch.sub(v, h, alpha=0.5),
    ],
    ids=range(4),
)  # fmt: skip
def test_whatever_the_signs_of_the_terms(add: object) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        v = net.b(net.a(x).relu())
        return net.e(add(net.d(net.c(v).relu()), v)).relu()

    check(Lambda(forward, conv(), norm(), conv(groups=4), norm(), conv(k=1)), norms=1)


def test_layers_that_make_or_read_the_other_term_take_the_factors() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        v = net.a(x)
        return net.d(net.c(net.b(v).relu()) + v).relu()

    check(Lambda(forward, conv(bias=True), conv(), norm(), conv(k=1)), norms=0)


def test_a_sum_before_a_padded_layer_keeps_its_norm() -> None:
    check(mixer(3, conv(k=3)), norms=2)


@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_factors_that_are_zero_or_tiny_are_not_divided_by(value: float) -> None:
    net = randomise(mixer().double())
    net.d.weight.data[1] = value
    fused = reparam.fuse(net, image())
    assert_same_function(net, fused, image(), tolerance=TOLERANCE)
    assert count(fused, image())[1].norms == 2


def test_a_term_that_an_activation_or_the_caller_reads_keeps_the_norm() -> None:
    def relu_reads(net: nn.Module, x: torch.Tensor) -> object:
        v = net.b(net.a(x).relu())
        return net.e(net.d(net.c(v.relu()).relu()) + v).relu()

    def caller_reads(net: nn.Module, x: torch.Tensor) -> object:
        v = net.b(net.a(x).relu())
        return net.e(net.d(net.c(v).relu()) + v).relu(), v

    for forward in (relu_reads, caller_reads):
        check(Lambda(forward, conv(), norm(), conv(groups=4), norm(), conv(k=1)), norms=2)


# ------------------------------------------------------------------------------ something between


def added_in_place(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = net.a(x) + x.tanh()
    y += net.b(x)
    return y


BETWEEN = {
    "a + n + b": lambda s, x: s.a(x) + x.tanh() + s.b(x),
    "n + a + b": lambda s, x: x.tanh() + s.a(x) + s.b(x),
    "b + (a + n)": lambda s, x: s.b(x) + (s.a(x) + x.tanh()),
    "a - n - b": lambda s, x: s.a(x) - x.tanh() - s.b(x),
    "norm of a - 2 n + b": lambda s, x: s.c(s.a(x) - 2 * x.tanh()) + s.b(x),
    "a + n + b + x": lambda s, x: s.a(x) + x.tanh() + s.b(x) + x,
    "in place": added_in_place,
}


@pytest.mark.parametrize("form", BETWEEN.values(), ids=BETWEEN)
def test_branches_are_added_first_where_something_else_comes_between(form: object) -> None:
    net = Lambda(form, conv(), conv(k=1, bias=True), norm())
    fused = check(net, convs=2 if form is BETWEEN["norm of a - 2 n + b"] else 1)
    program = torch.export.export(net, (image(),))
    x = image(2, 4, 9, 8)
    torch.testing.assert_close(reparam.fuse(program).module()(x), fused(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "form",
    [lambda s, x: x + x.tanh() + s.a(x), lambda s, x: s.a(x) + x.tanh() + x,
     lambda s, x: x.tanh() - x + s.a(x)],
    ids=range(3),
)  # fmt: skip
def test_what_the_branches_read_is_one_of_them(form: object) -> None:
    net = Lambda(form, conv())
    fused = check(net, convs=1)
    left = count(fused, image())[1].others
    assert left["add"] + left["sub"] == 1, left


def test_branches_of_other_values_or_with_readers_between_are_left() -> None:
    check(Lambda(lambda s, x: s.a(x) + x.tanh() + s.b(x.sigmoid()), conv(), conv()), convs=2)
    check(Lambda(lambda s, x: ((y := s.a(x) + x.tanh()) + s.b(x), y), conv(), conv()), convs=2)
    check(Lambda(lambda s, x: ((a := s.a(x)) + x.tanh() + s.b(x), a), conv(), conv()), convs=2)
    check(Lambda(lambda s, x: s.a(x) * x.tanh() + s.b(x), conv(), conv()), convs=2)


# ------------------------------------------------------------------------------ transposed


def up(k: int = 3, stride: int = 2, padding: int = 0, **kw: object) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(4, 4, k, stride, padding, **kw)


ALIKE = {
    "plain": {},
    "padded": {"padding": 1, "output_padding": 1},
    "grouped": {"groups": 2},
    "dilated": {"dilation": 2, "k": 2},
    "of stride 3": {"k": 4, "stride": 3},
}


@pytest.mark.parametrize("how", ALIKE.values(), ids=ALIKE)
def test_transposed_branches_of_one_kind_become_one_with_their_norms(how: dict) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        return (net.c(net.a(x)) - net.b(x)).relu()

    check(Lambda(forward, up(bias=False, **how), up(**how), norm()), norms=0, convs=1)


@pytest.mark.parametrize(
    "other", [up(4, padding=1), up(2), up(3, 2, 1, output_padding=1, groups=2)], ids=range(3)
)
def test_transposed_branches_of_several_kinds_stay_two(other: nn.Module) -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x, y = net.a(x), net.b(x)
        size = [min(pair) for pair in zip(x.shape[2:], y.shape[2:], strict=True)]
        return x[:, :, : size[0], : size[1]] + y[:, :, : size[0], : size[1]]

    check(Lambda(forward, up(3, 2, 1, output_padding=1), other), convs=2)


TURNED = {
    "3x3": ((4, 6, 3, 1, 1), {}),
    "padded by all": ((4, 6, 3, 1, 2), {}),
    "uneven, grouped, dilated": ((4, 6, (3, 2), 1, (3, 1)), {"groups": 2, "dilation": (2, 1)}),
}


@pytest.mark.parametrize("case", TURNED.values(), ids=TURNED)
def test_a_transposed_convolution_of_stride_one_is_a_convolution(case: tuple) -> None:
    given, how = case
    net = Lambda(lambda s, x: s.b(s.a(x)).relu(), nn.ConvTranspose2d(*given, **how), norm(6))
    fused = check(net, norms=0, convs=1)
    assert isinstance(fused.a, nn.Conv2d)


def test_one_that_grows_its_input_stays_transposed_as_zeros_cost_as_much_as_numbers() -> None:
    net = Lambda(lambda s, x: s.b(s.a(x)).relu(), up(3, 1, 0), norm())
    assert isinstance(check(net, norms=0).a, nn.ConvTranspose2d)


def test_a_transposed_convolution_of_stride_one_is_a_branch_like_any() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        return (net.c(net.a(x)) + net.b(x) + net.d(x)).relu()

    check(Lambda(forward, up(3, 1, 1), conv(k=1), norm(), norm()), norms=0, convs=1)


def test_a_norm_before_a_transposed_layer_goes_into_one_that_reads_no_border() -> None:
    """Of stride 1 and padded by all that its kernel spans, it reads its input alone."""
    before = Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), up(3, 1, 2))
    check(before, norms=0)
    for layer in (up(3, 1, 1), up(3, 1, 0), up(2, 2, 0)):
        check(Lambda(lambda s, x: s.b(s.a(x.relu())), norm(), layer), norms=1)
