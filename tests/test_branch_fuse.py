"""There and back: fuse(branch(m)) has the structure and the function of fuse(m)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reparam.branching import BranchSum, branch
from reparam.branching.rep_optimizer import default_scales, scaled_branches
from reparam.fusing import fuse
from test_branch import EXACT, F64, FITTING, GEOMETRIES, difference


def convolutions(model: nn.Module) -> list[tuple[object, ...]]:
    return [
        (type(m), m.in_channels, m.out_channels, m.kernel_size, m.stride, m.dilation, m.groups)
        for m in model.modules()
        if isinstance(m, _ConvNd)
    ]


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """Give a model the statistics of some input, so that its output depends on what it sees."""
    model.to(F64).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        model(x)
    return model.eval()


def assert_back_again(model: nn.Module, wide: nn.Module, x: Tensor) -> None:
    fused, back = fuse(model), fuse(wide)
    assert any(isinstance(m, BranchSum) for m in wide.modules())
    assert convolutions(back) == convolutions(fused)
    assert norms(back) == norms(fused)
    scale = model(x).abs().max().item()
    assert difference(model, wide, x) <= EXACT * scale
    assert difference(model, back, x) <= EXACT * scale


@pytest.mark.parametrize(
    ("kind", "geometry", "how"),
    [*((*case, "keep") for case in FITTING), *((*c, "absorb") for c in FITTING if c[0] == "dbb")],
)
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_every_kind_and_geometry_folds_back_to_one_convolution(kind, geometry, how) -> None:
    x = torch.randn(4, 4, 11, 12, dtype=F64)
    conv = nn.Conv2d(4, 4, **GEOMETRIES[geometry])
    net = trained(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()), x)
    assert_back_again(net, branch(net, kind, norms=how), x)


def resnet18() -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18(num_classes=10)


def vgg11_bn() -> nn.Module:
    model = pytest.importorskip("torchvision").models.vgg11_bn(num_classes=10)
    # Its classifier alone has 120 million weights and no convolution.
    model.classifier = nn.Linear(512 * 7 * 7, 10)
    return model


def mobilenet_v3_small() -> nn.Module:
    return pytest.importorskip("torchvision").models.mobilenet_v3_small(num_classes=10)


def timm_resnet10t() -> nn.Module:
    return pytest.importorskip("timm").create_model("resnet10t", num_classes=10)


NETS = [resnet18, vgg11_bn, mobilenet_v3_small, timm_resnet10t]


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("repvgg", "keep"),
        pytest.param("repvgg", "absorb", marks=pytest.mark.slow),
        pytest.param("acnet", "keep", marks=pytest.mark.slow),
        pytest.param("dbb", "absorb", marks=pytest.mark.slow),
        pytest.param("mobileone", "keep", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_known_nets_come_back(make, kind, how) -> None:
    if (make, kind) == (mobilenet_v3_small, "mobileone"):
        pytest.xfail(
            "two 1x1 in a row become one, dearer than both, as it is cheaper than branches"
        )
    x = torch.randn(4, 3, 48, 48, dtype=F64)
    net = trained(make(), x)
    assert_back_again(net, branch(net, kind, norms=how), x)


def test_the_fused_net_can_be_branched_and_trained_on() -> None:
    """A deployed net goes back to branches, learns, and is deployed again."""
    x = torch.randn(8, 3, 16, 16, dtype=F64)
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
    deployed = fuse(trained(nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), second), x))
    wide = branch(deployed, "dbb", calibrate=x).train()
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        wide(x).square().mean().backward()
        optimizer.step()
    again = fuse(wide.eval())
    assert convolutions(again) == convolutions(deployed)
    assert difference(wide, again, x) <= EXACT
    assert difference(deployed, again, x) > 1e-3


def test_a_csla_net_folds_to_the_plain_net() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).to(F64).eval()
    wide = scaled_branches(net, default_scales(net))
    back = fuse(wide)
    x = torch.randn(2, 4, 8, 8, dtype=F64)
    assert convolutions(back) == convolutions(net)
    assert difference(wide, back, x) <= EXACT
