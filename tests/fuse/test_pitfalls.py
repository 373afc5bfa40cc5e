"""Structures that a careless fold gets wrong, one test each (the reasons are the product's own)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import reparam
from checking import Snapshot, assert_same_function
from counting import count
from reparam import Why
from small_nets import TOLERANCE, Lambda, check, conv, image, norm
from zoo import randomise

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


# ------------------------------------------------------------------------------- traces that lie


def test_a_branch_on_the_type_of_the_input() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.Tensor):
            return m.b(m.a(x)) * 2
        return m.b(m.a(x))

    check(Lambda(forward, conv(), norm()))


@pytest.mark.parametrize("example", [True, False])
def test_a_branch_on_the_shape(*, example: bool) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.a(x)) if x.shape[-1] > 9 else m.c(m.b(x))

    check(Lambda(forward, conv(), conv(), norm()), example=example)


@pytest.mark.parametrize("example", [True, False])
def test_a_branch_on_the_numbers(*, example: bool) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.a(x)) if x.sum() > 0 else m.c(m.b(x))

    model = Lambda(forward, conv(), conv(), norm())
    check(model, image().abs(), -image().abs(), example=example)


def test_a_branch_on_the_numbers_of_a_parameter() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.a(x)) if m.a.weight.sum() > 0 else m.c(m.b(x))

    check(Lambda(forward, conv(), conv(), norm()))


@pytest.mark.parametrize("example", [True, False])
def test_a_number_that_only_some_traces_know(*, example: bool) -> None:
    """``k + 1`` is an operation where ``k`` is unknown, and none where the caller's 3 is seen."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv(k=1)

        def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
            left, right = self.a(x), self.b(x)
            factor = k + 1
            return torch.relu(left + right) * factor

    check(Lambda(lambda m, x: m.a(x, 3), Block()), convs=1, example=example)


@pytest.mark.parametrize("example", [True, False])
def test_random_numbers_stay_random(*, example: bool) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.b(m.a(x)) + torch.rand(4, 1, 1, dtype=torch.float64)

    model = randomise(Lambda(forward, conv(), norm()).double())
    fused = reparam.fuse(model, image() if example else None)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = model(image())
        torch.manual_seed(seed)
        torch.testing.assert_close(fused(image()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("example", [True, False])
def test_dropout_that_is_always_on_stays_on(*, example: bool) -> None:
    """``F.dropout`` drops by default, in eval mode too."""
    model = randomise(Lambda(lambda m, x: m.b(F.dropout(m.a(x), 0.5)), conv(), norm()).double())
    fused = reparam.fuse(model, image() if example else None)
    torch.manual_seed(1)
    expected = model(image())
    torch.manual_seed(1)
    torch.testing.assert_close(fused(image()), expected, rtol=1e-12, atol=1e-12)


def test_a_norm_that_always_uses_batch_statistics_stays() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = m.a(x)
        return F.batch_norm(out, None, None, m.b.weight, m.b.bias, training=True)

    check(Lambda(forward, conv(), norm()), norms=1)


def test_an_attribute_that_counts_calls() -> None:
    """A forward with a side effect: whatever is done, the original is not called into change."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.calls = conv(), norm(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.norm(self.conv(x))

    model = randomise(Counting().double())
    fused = reparam.fuse(model, image())
    assert model.calls == 0
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)


def test_a_cache_filled_in_forward_gets_no_proxy() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), norm()
            self.bias = nn.Parameter(torch.zeros(4, 1, 1))
            self.cache: dict[str, object] = {}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if "bias" not in self.cache:
                self.cache["bias"] = self.bias * 2
            return self.norm(self.conv(x)) + self.cache["bias"]

    model = randomise(Cached().double())
    fused = reparam.fuse(model)
    assert model.cache == {}
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)
    assert (
        all(isinstance(v, torch.Tensor) for v in fused.cache.values())
        if hasattr(fused, "cache")
        else True
    )


def test_optional_arguments_left_alone_and_given() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(), norm(), conv()

        def forward(
            self, x: torch.Tensor, mask: torch.Tensor | None = None, *, again: bool = False
        ) -> torch.Tensor:
            out = self.b(self.a(x))
            if mask is not None:
                out = out * mask
            return self.c(out) if again else out

    model = randomise(Optional().double())
    fused = reparam.fuse(model, image())
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)
    assert count(fused, image())[1].norms == 0
    mask = image(1, 1, 9, 8)
    torch.testing.assert_close(fused(image(), mask), model(image(), mask), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        fused(image(), again=True), model(image(), again=True), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("given", [{}, {"k": 2}, {"k": 3}], ids=str)
def test_an_argument_with_a_default_given_by_name(given: dict[str, int]) -> None:
    """A rewritten forward takes its arguments by the names, and with the values, it had before."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv(k=1)

        def forward(self, x: torch.Tensor, k: int = 2) -> torch.Tensor:
            return torch.relu(self.a(x) + self.b(x)) * k

    inner = randomise(Block().double())
    check(Lambda(lambda m, x: m.a(x, **given), inner))
    fused = reparam.fuse(inner, image())
    if given.get("k", 2) != 2:
        # An argument that no example passes is traced at its default, and the result says so.
        with pytest.raises(reparam.ReparamError, match="k = 2"):
            fused(image(), **given)
        fused = reparam.fuse(inner, (image(), 3))
    torch.testing.assert_close(
        fused(image(), **given), inner(image(), **given), rtol=1e-11, atol=1e-11
    )


def test_several_inputs_and_a_dict_of_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(), conv(k=1), norm()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
            both = self.a(x) + self.b(y)
            return {"both": self.c(both), "pair": (x, [y])}

    model = randomise(Two().double())
    fused = reparam.fuse(model, (image(), -image()))
    assert_same_function(model, fused, image(), -image(), tolerance=TOLERANCE)


# ------------------------------------------------------------------------------- kinds of layers


def test_parametrizations_are_materialised_on_the_copy_alone() -> None:
    layer = parametrizations.weight_norm(conv())
    fused = check(nn.Sequential(layer, norm()), convs=1, norms=0)
    assert parametrize.is_parametrized(layer)
    assert not any(parametrize.is_parametrized(part) for part in fused.modules())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_that_a_hook_computes_become_plain_ones(
    kind: Callable[[nn.Module], nn.Module], dtype: torch.dtype
) -> None:
    model = nn.Sequential(kind(conv()), norm(), nn.ReLU(), kind(nn.Linear(8, 3)))
    model = randomise(model.double()).to(dtype).eval()
    x = image().to(dtype)
    expected, before = model(x), Snapshot.of(model)
    fused = reparam.fuse(model, x)
    before.assert_unchanged(model)
    assert {name for name, _ in fused.named_parameters()} == {
        "0.weight", "0.bias", "3.weight", "3.bias",
    }  # fmt: skip
    assert not any(part._forward_pre_hooks for part in fused.modules())
    assert fused[0].weight.dtype is dtype
    tolerance = TOLERANCE if dtype is torch.float64 else 1e-5
    torch.testing.assert_close(fused(x), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "layer", [nn.SyncBatchNorm(4), nn.BatchNorm2d(4, affine=False)], ids=["sync", "plain"]
)
def test_kinds_of_norms_fold(layer: nn.Module) -> None:
    check(nn.Sequential(conv(), layer), convs=1, norms=0)


@pytest.mark.parametrize(
    "layer",
    [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, track_running_stats=True)],
    ids=["instance", "group", "instance-running"],
)
def test_other_norms_keep_their_function(layer: nn.Module) -> None:
    check(nn.Sequential(conv(), layer, conv()))


def test_a_subclass_with_another_forward_is_not_its_base() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Negated(nn.Conv2d):
        def _conv_forward(
            self, x: torch.Tensor, weight: torch.Tensor, bias: object
        ) -> torch.Tensor:
            return super()._conv_forward(x, -weight, bias)

    check(nn.Sequential(Negated(4, 4, 3, padding=1), Doubled(4)))


def test_timm_layers_fold() -> None:
    layers = pytest.importorskip("timm.layers")
    check(nn.Sequential(conv(), layers.BatchNormAct2d(4)), convs=1, norms=0)
    same = layers.Conv2dSame(4, 4, 3, stride=2, bias=False)
    check(nn.Sequential(same, norm()), convs=1, norms=0)


def test_torchvisions_frozen_norm_folds() -> None:
    ops = pytest.importorskip("torchvision.ops")
    model = nn.Sequential(conv(), ops.FrozenBatchNorm2d(4))
    fused = check(model, convs=1)
    assert set(count(fused, image())[1].others) == set()


def test_a_model_that_is_one_block_needs_no_example() -> None:
    """The whole model becomes one layer, whose argument has another name."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv(k=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    check(Branches(), convs=1, example=False)
