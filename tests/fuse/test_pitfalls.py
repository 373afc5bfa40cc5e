"""Structures that a careless fold gets wrong, one test each (the reasons are the product's own)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam import Why
from small_nets import Lambda, check, conv, image, norm

# ------------------------------------------------------------------------------- chains


def test_bias_seen_through_zero_padding_is_refused() -> None:
    check(
        nn.Sequential(conv(k=1, bias=True), conv(cout=2)), convs=2, because=Why.BIAS_THROUGH_PADDING
    )


def test_bias_without_padding_is_exact() -> None:
    check(nn.Sequential(conv(cout=8, k=1, bias=True), conv(8, padding=0)), convs=1)


def test_two_padded_kernels_are_refused() -> None:
    check(nn.Sequential(conv(), conv()), convs=2)


def test_kxk_then_1x1_is_exact() -> None:
    check(
        nn.Sequential(conv(cout=8, bias=True), norm(8), conv(8, k=1, bias=True)), convs=1, norms=0
    )


def test_strided_1x1_then_kxk_multiplies_strides() -> None:
    wide = nn.Sequential(conv(cout=64, k=1, stride=2), conv(64))
    check(wide, convs=1)


def test_a_chain_that_would_cost_more_stays() -> None:
    """4 to 1 to 4 channels: one dense kernel would be dearer than the two."""
    check(nn.Sequential(conv(cout=1, k=1), conv(1)), convs=2)


def test_a_padded_1x1_is_not_taken_for_an_unpadded_one() -> None:
    check(Lambda(lambda m, x: m.a(x) + m.b(x)[..., 1:-1, 1:-1], conv(), conv(k=1, padding=1)))


def test_zeros_cropped_off_are_not_seen_again() -> None:
    """Cropping then padding puts zeros where the image was."""
    check(Lambda(lambda m, x: m.a(F.pad(x, (-1, -1, -1, -1))), conv()))


# ------------------------------------------------------------------------------- borders


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (3, 4)])
def test_even_kernels_with_same_padding(kernel: tuple[int, int]) -> None:
    same = nn.Conv2d(4, 4, kernel, padding="same")
    check(nn.Sequential(same, norm()), convs=1, norms=0)


def test_unequal_padding_by_hand() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.b(m.a(F.pad(x, (0, 1, 1, 0)))) + m.c(x)

    check(Lambda(forward, nn.Conv2d(4, 4, 2, bias=False), norm(), conv(k=1)), convs=1, norms=0)


def test_padding_with_another_number_than_zero_is_not_zero_padding() -> None:
    check(Lambda(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1), value=0.5)), conv(padding=0)), convs=1)


def test_zeros_around_reflected_padding_are_no_layer_of_their_own() -> None:
    first = conv(cout=24, k=1, padding=1, padding_mode="reflect")
    net = nn.Sequential(first, conv(24, 4, k=3, padding=1))
    check(net, convs=2, because=Why.PADS_TWICE)
    check(nn.Sequential(first, conv(24, 4, k=3, padding=0)), convs=1)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_other_padding_modes_take_the_norm_and_no_branch_with_zeros(mode: str) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.b(m.a(x)) + m.c(x)

    check(Lambda(forward, conv(padding_mode=mode), norm(), conv(bias=True)), convs=2, norms=0)


@pytest.mark.parametrize("branch", [nn.AvgPool2d(3, 1, 1, count_include_pad=False)])
def test_a_pool_that_does_not_count_its_padding_is_refused(branch: nn.Module) -> None:
    model = Lambda(lambda m, x: m.a(x) + m.b(m.c(x)), conv(), norm(), branch)
    check(model, because=Why.UNCOUNTED_PADDING)


def test_a_pool_in_ceil_mode_is_refused() -> None:
    pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
    check(nn.Sequential(conv(), pool, norm()), image(2, 4, 10, 8), because=Why.CEIL_MODE)


def test_a_pool_that_counts_its_padding_folds_into_a_dense_kernel() -> None:
    check(Lambda(lambda m, x: m.a(x) + m.b(x), conv(), nn.AvgPool2d(3, 1, 1)), convs=1)


# ------------------------------------------------------------------------------- in-place writes


def test_an_in_place_activation_is_not_dead_code() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = m.b(m.a(x))
        out.relu_()
        return m.c(out)

    check(Lambda(forward, conv(), norm(), conv()), convs=2, norms=0)


def test_an_in_place_change_of_the_source_between_branches() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        source = m.c(x)
        left = m.a(source)
        source.relu_()
        return left + m.b(source)

    check(Lambda(forward, conv(), conv(), conv()), convs=3)


def test_an_in_place_change_through_a_view() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        source = m.c(x)
        first, _ = source.chunk(2, dim=1)
        left = m.a(source)
        first.mul_(-1).relu_()
        return left + m.b(source)

    check(Lambda(forward, conv(), conv(), conv()), convs=3)


def test_an_in_place_change_through_an_identity_module() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        source = m.c(x)
        F.relu(m.d(source), inplace=True)
        return m.a(source) + m.b(source)

    check(Lambda(forward, conv(), conv(k=1), conv(), nn.Identity()))


def test_accumulation_in_place_folds() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = m.a(x)
        out += m.b(x)
        return out

    check(Lambda(forward, conv(), conv(k=1)), convs=1)


def test_accumulation_in_place_behind_an_identity_module_folds() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = m.c(m.a(x))
        out += m.b(x)
        out += m.d(x)
        return out

    check(Lambda(forward, conv(), conv(k=1), nn.Identity(), norm()), convs=1, norms=0)


def test_a_change_through_a_view_of_a_view_that_is_read_once_more() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        held = m.c(m.a(x))
        changed = held.view(held.shape)
        changed += m.b(x)
        return changed * held

    check(Lambda(forward, conv(), conv(k=1), nn.Identity()), convs=2)


@pytest.mark.parametrize("between", [lambda y: y, torch.relu], ids=["at once", "behind a relu"])
def test_a_norm_that_puts_a_permuted_value_in_order_for_a_view_stays(between) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return between(m.b(m.a(x).permute(0, 1, 3, 2))).view(x.shape[0], -1)

    check(Lambda(forward, conv(), norm()), convs=1, norms=1)
    # What copies where it has to takes any order.
    reshaped = Lambda(
        lambda m, x: m.b(m.a(x).permute(0, 1, 3, 2)).reshape(len(x), -1), conv(), norm()
    )
    check(reshaped, convs=1, norms=0)


def test_accumulation_onto_a_value_with_another_reader() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = m.a(x)
        kept = m.c(out)
        out += m.b(x)
        return out, kept

    check(Lambda(forward, conv(), conv(k=1), nn.Identity()))


def test_the_callers_tensor_is_written_to_as_before() -> None:
    check(Lambda(lambda m, x: m.b(m.a(x.relu_())), conv(), norm()), norms=0)


# ------------------------------------------------------------------------------- several readers


def test_a_value_read_before_its_norm_too() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = m.a(x)
        return m.b(raw), raw

    check(Lambda(forward, conv(), norm()))


def test_a_shared_module_called_twice() -> None:
    check(Lambda(lambda m, x: m.b(m.a(m.b(m.a(x)))), conv(), norm()))


def test_a_shared_conv_with_two_norms() -> None:
    check(Lambda(lambda m, x: (m.b(m.a(x)), m.c(m.a(x))), conv(), norm(), norm()))


def test_statistics_that_something_else_reads_stay_where_they_are() -> None:
    def forward(net: nn.Module, x: torch.Tensor) -> object:
        x = net.a(x)
        x = F.batch_norm(x, net.b.running_mean, net.b.running_var, eps=net.b.eps)
        return net.b(net.b(x.relu()))

    check(Lambda(forward, conv(), norm()), because=Why.USED_ELSEWHERE)


def test_tied_weights() -> None:
    left, right = conv(), conv()
    right.weight = left.weight
    check(Lambda(lambda m, x: m.d(m.b(m.c(m.a(x)))), left, right, norm(), norm()))


# ------------------------------------------------------------------------------- axes


def test_a_factor_along_the_width_is_not_one_per_channel() -> None:
    model = Lambda(lambda m, x: m.a(x) * m.factor, conv())
    model.factor = nn.Parameter(torch.zeros(4))
    check(model, image(2, 4, 9, 4))


def test_a_norm_over_tokens_is_not_one_over_features() -> None:
    """On ``(batch, 6, 6)`` a BatchNorm1d behind a linear layer normalises the tokens."""
    check(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), image(3, 6, 6), norms=1)


def test_unbatched_images_still_run() -> None:
    model = Lambda(lambda m, x: m.a(x) * m.factor, conv(bias=True))
    model.factor = nn.Parameter(torch.zeros(4, 1, 1))
    check(model, image(), image(4, 9, 8))


def test_a_lone_factor_never_becomes_a_convolution() -> None:
    model = Lambda(lambda m, x: F.relu(x * m.factor + 1))
    model.factor = nn.Parameter(torch.zeros(4, 1, 1))
    check(model, convs=0)


def test_a_lone_norm_never_becomes_a_convolution() -> None:
    check(nn.Sequential(nn.ReLU(), norm(), nn.ReLU()), convs=0, norms=1)
