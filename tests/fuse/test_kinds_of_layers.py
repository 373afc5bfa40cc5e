"""Layers that are written in another way than a plain convolution and norm."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import reparam
from checking import Snapshot
from counting import count
from small_nets import TOLERANCE, check, conv, image, norm
from zoo import randomise


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
