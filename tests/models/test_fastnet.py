"""The fast net: its first layer whitens, its branches fold, and it starts as it says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import InputError
from reparam.models import FastNet, fastnet, resolve


def images(count: int = 200, channels: int = 3) -> torch.Tensor:
    """Smooth random images, whose neighbouring pixels are much alike, as photographs' are."""
    noise = torch.randn(
        count, channels, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    smooth = nn.functional.interpolate(noise, size=(20, 20), mode="bilinear")
    return smooth + 0.5 * smooth.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_whitens_the_patches_it_was_given(channels: int) -> None:
    net = FastNet((8, 8, 8), in_channels=channels).double()
    data = images(channels=channels)
    net.fit_data_(data)
    seen = net.whiten(data).transpose(0, 1).flatten(1)
    half = len(seen) // 2
    torch.testing.assert_close(seen[half:], -seen[:half], rtol=0, atol=1e-12)
    moments = seen[:half] @ seen[:half].T / seen.shape[1]
    torch.testing.assert_close(moments, torch.diag(moments.diagonal()), rtol=0, atol=1e-9)
    variances = moments.diagonal()
    assert bool((variances <= 1).all())
    assert bool((variances[: half // 2] > 0.9).all())  # eps takes from the small ones alone


def test_what_was_fitted_stays_and_is_no_parameter_to_train() -> None:
    net = FastNet((8, 8, 8)).double()
    net.fit_data_(images())
    kept = net.whiten.weight.clone()
    net.fit_data_(3 * images())
    assert torch.equal(net.whiten.weight, kept)
    again = FastNet((8, 8, 8)).double()
    again.load_state_dict(net.state_dict())
    again.fit_data_(3 * images())
    assert torch.equal(again.whiten.weight, kept)
    net(images(4)).sum().backward()
    assert net.whiten.weight.grad is None
    assert net.head.weight.grad is not None


def test_blocks_that_widen_begin_by_passing_their_channels_on() -> None:
    net = FastNet((32, 48, 48))
    for stage, channels in ((0, 24), (1, 32)):
        kernel = net.stages[stage][0].branches.get_submodule("kxk0.conv").weight
        x = torch.randn(1, channels, 6, 6)
        assert torch.equal(nn.functional.conv2d(x, kernel, padding=1)[:, :channels], x)
        assert float(kernel.detach()[channels:].abs().max()) > 0


@torch.no_grad()
@pytest.mark.parametrize("branches", ["identity", "repvgg", "qarepvgg"])
def test_it_folds_to_seven_convolutions_and_a_perturbed_kernel_is_seen(branches: str) -> None:
    torch.manual_seed(0)
    net = FastNet((16, 24, 24), branches=branches).double()
    net.fit_data_(images())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = float(torch.rand(())) * 1e-2 + 1e-4
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    net.eval()
    before = copy.deepcopy(net.state_dict())
    fused = reparam.fuse(net)
    x = images(8)
    assert float((fused(x) - net(x)).abs().max()) <= 1e-12
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == 7
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    last = [module for module in fused.modules() if isinstance(module, nn.Conv2d)][-1]
    last.weight.data += 1e-3
    assert float((fused(x) - net(x)).abs().max()) > 1e-9


def test_by_name_and_with_bad_branches() -> None:
    net = resolve("reparam.models:fastnet", num_classes=3)
    assert isinstance(net, FastNet)
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert sum(p.numel() for p in reparam.fuse(fastnet().eval()).parameters()) == 1_971_616
    with pytest.raises(InputError, match=r"no choice of branches 'rep'.*there are"):
        FastNet(branches="rep")
