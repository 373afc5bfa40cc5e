"""The three criteria, against what they say they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import reparam
from prunable import images, randomise, repvgg, resnet, straight
from reparam.errors import InputError
from reparam.lab.pruning.graph import find_groups
from reparam.lab.pruning.importance import bn_scale, first_order, magnitude

pytest.importorskip("torch_pruning")

CLOSE = 1e-10


def groups_of(net: nn.Module):
    found, _ = find_groups(net, (images(),), ())
    return found


def test_magnitude_is_the_energy_of_both_sides() -> None:
    net = straight()
    first, second = magnitude(net, groups_of(net))
    written, read = net[0].weight, net[2].weight
    expected = written.square().sum((1, 2, 3)) * read.square().sum((0, 2, 3))
    torch.testing.assert_close(first, expected.detach(), rtol=CLOSE, atol=0)
    head = net[2].weight.square().sum((1, 2, 3)) * net[6].weight.square().sum(0)
    torch.testing.assert_close(second, head.detach(), rtol=CLOSE, atol=0)


def test_magnitude_does_not_follow_a_factor_that_relu_passes_on() -> None:
    net = straight()
    before = magnitude(net, groups_of(net))[0]
    factor = torch.empty(16, dtype=torch.float64).uniform_(0.01, 100)
    x = images()
    with torch.no_grad():
        given = net(x)
        net[0].weight.mul_(factor[:, None, None, None])
        net[0].bias.mul_(factor)
        net[2].weight.div_(factor[:, None, None])
        assert (net(x) - given).abs().max() < CLOSE
    after = magnitude(net, groups_of(net))[0]
    torch.testing.assert_close(after, before, rtol=CLOSE, atol=0)


def test_magnitude_of_grouped_convolutions_counts_inside_the_group() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(),
                        nn.Conv2d(12, 2, 1)).double().eval()  # fmt: skip
    first = magnitude(net, groups_of(net))[0]
    read = torch.stack([net[2].weight[6 * (c // 4) : 6 * (c // 4) + 6, c % 4] for c in range(8)])
    expected = net[0].weight.square().sum((1, 2, 3)) * read.square().sum((1, 2, 3))
    torch.testing.assert_close(first, expected.detach(), rtol=CLOSE, atol=0)


def gated(net: nn.Module, layers: list[str], x, y) -> torch.Tensor:
    """Return each image's derivative of its loss by a gate on the layers' outputs."""
    width = net.get_submodule(layers[0]).out_channels
    gate = torch.ones(len(x), width, dtype=torch.float64, requires_grad=True)
    hooks = [
        net.get_submodule(layer).register_forward_hook(
            lambda _module, _given, output: output * gate[:, :, None, None]
        )
        for layer in layers
    ]
    loss = functional.cross_entropy(net(x), y, reduction="sum")
    (derivative,) = torch.autograd.grad(loss, gate)
    for hook in hooks:
        hook.remove()
    return derivative


@pytest.mark.parametrize("make", [lambda: reparam.fuse(repvgg()), lambda: reparam.fuse(resnet())])
def test_first_order_is_the_derivative_by_one_gate_on_the_whole_group(make) -> None:
    net, x, y = make(), images(4), torch.tensor([0, 1, 2, 4])
    groups = groups_of(net)
    halves = [(x[:2], y[:2]), (x[2:], y[2:])]
    for data in ((x, y), halves):
        found = first_order(net, groups, data)
        for group, values in zip(groups, found, strict=True):
            layers = [member.name for member in group.having("out")]
            expected = gated(net, layers, x, y).square().mean(0)
            torch.testing.assert_close(values, expected, rtol=1e-8, atol=1e-15)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_first_order_takes_another_loss_and_refuses_a_broken_one() -> None:
    net, x = straight(), images(4)
    data = (x, torch.zeros(4, 5, dtype=torch.float64))
    values = first_order(net, groups_of(net), data, functional.mse_loss)
    assert all(bool((value > 0).any()) for value in values)
    with pytest.raises(InputError, match="needed is one finite number"):
        first_order(net, groups_of(net), data, lambda out, _: out.sum() * torch.inf)


def energies(net: nn.Module, *names: str) -> torch.Tensor:
    return torch.stack([net.get_submodule(name).weight.detach().square() for name in names]).sum(0)


def scale_of(trained: nn.Module, layer: str) -> torch.Tensor:
    """Return what bn_scale says of the group that has a layer (at or inside a path)."""
    fused = reparam.fuse(trained)
    groups = groups_of(fused)
    values = bn_scale(fused, groups, trained, images())
    return next(
        found for group, found in zip(groups, values, strict=True)
        if any(member.name.startswith(layer) for member in group.having("out"))
    )  # fmt: skip


@pytest.mark.parametrize(
    ("branches", "norms"),
    [
        ("repvgg", ("kxk0.bn", "pointwise.bn", "identity")),
        ("neither", ("kxk0.bn",)),
        ("qarepvgg", ("bn",)),
    ],
)
def test_bn_scale_is_that_of_the_norms_that_are_added(branches, norms) -> None:
    trained, where = repvgg(branches), "stages.0.1.branches"
    expected = energies(trained, *(f"{where}.{norm}" for norm in norms))
    torch.testing.assert_close(scale_of(trained, where), expected, rtol=CLOSE, atol=0)


def test_bn_scale_of_tied_layers_is_added_and_found_behind_plain_convolutions() -> None:
    trained = resnet()
    tied = energies(trained, "4.bn2", "4.downsample.1", "5.bn2")
    torch.testing.assert_close(scale_of(trained, "4.conv2"), tied, rtol=CLOSE, atol=0)
    alone = energies(trained, "3.bn1")
    torch.testing.assert_close(scale_of(trained, "3.conv1"), alone, rtol=CLOSE, atol=0)


def test_a_norm_inside_a_branch_does_not_count() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1)).double()
    trained = reparam.branch(plain.eval(), "dbb", where="0")
    for module in trained.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise(module)
    branches = "conv3x3", "conv1x1", "conv1x1_conv3x3", "conv1x1_avg3x3"
    expected = energies(trained, *(f"0.branches.{branch}.bn" for branch in branches))
    torch.testing.assert_close(scale_of(trained, "0"), expected, rtol=CLOSE, atol=0)


def test_bn_scale_prunes_what_the_norms_have_switched_off() -> None:
    trained = repvgg()
    with torch.no_grad():
        for module in trained.modules():
            if isinstance(module, nn.BatchNorm2d):
                dead = slice(module.num_features // 2, None)
                module.weight[dead] = 0
                module.bias[dead] = 0
    fused = reparam.fuse(trained)
    x = images()
    result = reparam.prune(fused, x, macs=0.6, importance="bn_scale", trained=trained)
    assert any(layer.changed for layer in result.layers)
    with torch.no_grad():
        assert (result.model(x) - trained(x)).abs().max() < CLOSE


def test_another_training_form_is_refused() -> None:
    fused = reparam.fuse(repvgg())
    with pytest.raises(InputError, match="a Sequential, has no layer 'st"):
        reparam.prune(fused, images(), macs=0.5, importance="bn_scale", trained=resnet())
    with pytest.raises(InputError, match="no batch norm of 16 channels"):
        reparam.prune(fused, images(), macs=0.5, importance="bn_scale", trained=fused)
