"""Blocks compute the papers' formulas, their branches line up, and torch.fx can trace them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import reparam
from reparam.models import (
    BRANCHES,
    Block,
    BlockSpec,
    BranchSpec,
    MobileOne,
    MobileOneSpec,
    ParallelSum,
    RepVGG,
    RepVGGSpec,
    SqueezeExcite,
)
from zoo import randomise

GEOMETRIES = {
    "plain": {"in_channels": 4, "out_channels": 4},
    "wider": {"in_channels": 4, "out_channels": 6},
    "strided": {"in_channels": 4, "out_channels": 4, "stride": 2},
    "dilated": {"in_channels": 4, "out_channels": 4, "dilation": 3},
    "dilated-strided": {"in_channels": 4, "out_channels": 8, "dilation": 2, "stride": 2},
    "grouped": {"in_channels": 8, "out_channels": 8, "groups": 4},
    "depthwise": {"in_channels": 5, "out_channels": 5, "groups": 5},
    "5x5": {"in_channels": 4, "out_channels": 4, "kernel_size": 5},
    "1x1": {"in_channels": 4, "out_channels": 4, "kernel_size": 1},
}
CHOICES = {**BRANCHES, "three kernels": BranchSpec(kernels=3), "no norm": BranchSpec(norm="none")}


def make(geometry: str, choice: str, **more) -> Block:
    spec = BlockSpec(branches=CHOICES[choice], **GEOMETRIES[geometry], **more)
    return randomise(Block(spec).double())


def batch_norm(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    """The formula, written out."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


def convolve(x: torch.Tensor, weight: torch.Tensor, bias, spec: dict) -> torch.Tensor:
    """A kernel centred on every ``stride``-th position of ``x``, dilated if it has an extent."""
    dilation = spec.get("dilation", 1)
    return F.conv2d(
        x,
        weight,
        bias,
        stride=spec.get("stride", 1),
        padding=dilation * (weight.shape[-1] // 2),
        dilation=dilation,
        groups=spec.get("groups", 1),
    )


def by_formula(block: Block, geometry: str, choice: str, x: torch.Tensor) -> torch.Tensor:
    """The affine part as the papers write it, from the block's own weights."""
    spec, norm = GEOMETRIES[geometry], CHOICES[choice].norm
    weights = dict(block.branches.named_children())
    if norm == "sum":
        weights = dict(block.branches.sum.named_children())
    total = torch.zeros(())
    for name, branch in weights.items():
        if name == "identity":
            total = total + (batch_norm(x, branch) if norm == "branch" else x)
        elif isinstance(branch, nn.Conv2d):
            total = total + convolve(x, branch.weight, branch.bias, spec)
        else:
            total = total + batch_norm(convolve(x, branch.conv.weight, None, spec), branch.bn)
    return batch_norm(total, block.branches.bn) if norm == "sum" else total


@pytest.mark.parametrize("choice", [name for name in CHOICES if name != "conv"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_affine_part_is_the_formula(geometry, choice):
    block = make(geometry, choice)
    x = torch.randn(2, GEOMETRIES[geometry]["in_channels"], 9, 8, dtype=torch.float64)
    expected = by_formula(block, geometry, choice, x)
    torch.testing.assert_close(block.branches(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(block(x), expected.relu(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_affine_part_is_one_convolution(geometry, choice):
    block = make(geometry, choice)
    operator = reparam.operator(block.branches)
    x = torch.randn(2, GEOMETRIES[geometry]["in_channels"], 9, 8, dtype=torch.float64)
    torch.testing.assert_close(operator(x), block.branches(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_branches_see_the_same_centre(geometry):
    """Dilation and padding are honoured by all: an impulse comes out of each at one position."""
    block = make(geometry, "repvgg")
    spec = BlockSpec(**GEOMETRIES[geometry])
    x = torch.zeros(1, spec.in_channels, 13, 13, dtype=torch.float64)
    x[:, :, 6, 6] = 1
    for name, branch in block.branches.named_children():
        difference = (branch(x) - branch(torch.zeros_like(x)))[0].abs().amax(0)
        rows = difference.amax(1).nonzero().flatten() * spec.stride
        assert rows.float().mean() == 6, name
        assert difference.shape[0] == -(-13 // spec.stride), name


def test_names_say_which_branch_is_which():
    def children(choice: str, geometry: str = "plain") -> list[str]:
        return [name for name, _ in make(geometry, choice).branches.named_children()]

    assert children("repvgg") == ["kxk0", "pointwise", "identity"]
    assert children("repvgg", "strided") == ["kxk0", "pointwise"]
    assert children("three kernels", "1x1") == ["kxk0", "kxk1", "kxk2", "identity"]
    assert children("qarepvgg") == ["sum", "bn"]
    assert isinstance(make("plain", "conv").branches, nn.Conv2d)


def test_convolution_has_a_bias_only_where_no_norm_follows():
    for choice, branches in CHOICES.items():
        convs = [m for m in make("plain", choice).modules() if isinstance(m, nn.Conv2d)]
        assert (convs[0].bias is not None) == (branches.norm == "none")
        assert all(conv.bias is None for conv in convs[branches.kernels :])


def test_squeeze_excite_is_the_formula():
    attention = SqueezeExcite(6, 2).double()
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    w1, w2 = attention.reduce.weight[:, :, 0, 0], attention.expand.weight[:, :, 0, 0]
    hidden = (x.mean((2, 3)) @ w1.T + attention.reduce.bias).relu()
    scale = torch.sigmoid(hidden @ w2.T + attention.expand.bias)
    torch.testing.assert_close(attention(x), x * scale[:, :, None, None], rtol=0, atol=1e-12)


def test_attention_comes_before_the_activation():
    block = make("plain", "repvgg", squeeze=2)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), block.attention(block.branches(x)).relu())
    assert not torch.allclose(block(x), block.attention(block.branches(x).relu()))


def test_sum_adds_every_branch_once():
    total = ParallelSum({str(i): nn.Linear(2, 2) for i in range(4)})
    x = torch.randn(3, 2)
    torch.testing.assert_close(total(x), sum(branch(x) for branch in total.children()))


def test_every_branch_learns():
    block = Block(BlockSpec(in_channels=4, out_channels=4, squeeze=2))
    block(torch.randn(2, 4, 6, 6)).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


NETS = {
    **{
        f"repvgg {choice}": RepVGG(
            RepVGGSpec(depths=(2, 1), widths=(8, 8), stem_width=8, branches=CHOICES[choice]), 5
        )
        for choice in CHOICES
    },
    "repvgg with attention": RepVGG(
        RepVGGSpec(depths=(2,), widths=(8,), stem_width=8, reduction=4, dilations=2), 5
    ),
    "mobileone": MobileOne(
        MobileOneSpec(
            depths=(2,), widths=(8,), stem_width=8, attentive=1, branches=BranchSpec(kernels=2)
        ),
        5,
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_the_whole_network_is_traced_once_and_for_every_size(name, training):
    net = randomise(NETS[name].double()).train(training)
    graph = fx.symbolic_trace(net)
    for size in (16, 23):
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        assert torch.equal(graph(x), net(x))


def test_forward_is_the_same_code_in_both_modes():
    """The blocks know nothing of deployment: tracing meets no difference between the modes."""
    for net in NETS.values():
        graphs = [fx.symbolic_trace(net.train(mode)).code for mode in (True, False)]
        assert graphs[0] == graphs[1]
