"""branch: statistics of the branches, and the norm that stands behind a convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from branching_nets import EXACT, F64, OF_3X3, Net, X, difference
from reparam.branching import (
    BranchSum,
    branch,
    plan_branching,
)
from reparam.errors import InputError


@pytest.fixture
def net() -> Net:
    return Net().to(F64).eval()


# ----------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("kind", OF_3X3)
def test_calibrated_blocks_compute_the_same_in_the_first_training_step(net: Net, kind) -> None:
    x = torch.randn(X, dtype=F64) * 3 + 1
    wide = branch(net, kind, calibrate=x)
    assert difference(net, wide, x) <= EXACT
    for module in wide.modules():
        if isinstance(module, BranchSum) and module is not wide.shared:
            module.train()
    # The block that is used twice normalises each use by its own batch: left in eval mode here.
    assert difference(net, wide, x) <= 1e-9


def test_batches_give_the_statistics_of_all_of_them() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1).to(F64).eval()
    x = torch.randn(7, 3, 9, 9, dtype=F64) + torch.tensor([5.0, 0, -5]).view(3, 1, 1)
    whole = branch(conv, "dbb", generator=torch.Generator().manual_seed(0), calibrate=x)
    parts = branch(
        conv,
        "dbb",
        generator=torch.Generator().manual_seed(0),
        calibrate=iter([x[:2], (x[2:3],), {"x": x[3:]}]),
    )
    for (key, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=key)


def test_calibrated_statistics_are_those_of_the_branch() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).to(F64).eval()
    x = torch.randn(5, 4, 8, 8, dtype=F64) * 2 - 1
    wide = branch(conv, "repvgg", calibrate=x)
    norm = wide.branches["identity"]
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, x.var((0, 2, 3), unbiased=False))
    share = conv(x).std((0, 2, 3), unbiased=False) / 3**0.5
    torch.testing.assert_close(norm.weight, share)


def test_without_data_the_statistics_are_those_of_white_input() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False).to(F64)
    wide = branch(conv, "dbb")
    x = torch.randn(64, 8, 24, 24, dtype=F64)
    drift = (wide(x) - conv(x)).std() / conv(x).std()
    assert drift < 0.1
    fresh = branch(conv, "dbb")
    for module in fresh.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    assert (fresh(x) - conv(x)).std() / conv(x).std() > 0.5


def test_calibration_leaves_modes_and_hooks(net: Net) -> None:
    net.stem.train()
    modes = [module.training for module in net.modules()]
    calibrated = branch(net, where="pointwise", kind="mobileone", calibrate=torch.randn(X).to(F64))
    assert [module.training for module in net.modules()] == modes
    assert calibrated.stem.training
    assert not calibrated.pointwise.training
    hooks = [h for m in calibrated.modules() for h in (m._forward_hooks, m._forward_pre_hooks) if h]
    assert hooks == []


# ------------------------------------------------------------------------------------ own norms


def test_an_absorbed_norm_becomes_part_of_the_block(net: Net) -> None:
    x = torch.randn(X, dtype=F64)
    for kind in OF_3X3:
        plan = plan_branching(net, kind, norms="absorb")
        pairs = {region.where: region.norm for region in plan.regions}
        assert pairs["stem.0"] == "stem.1"
        # Used twice, and behind no norm.
        assert pairs["shared"] is None
        wide = plan.apply(calibrate=x)
        assert type(wide.stem[1]) is nn.Identity
        assert not wide.stem[1].training
        assert difference(net, wide, x) <= EXACT
        wide.stem.train()
        assert difference(net, wide, x) <= 1e-9
    assert plan_branching(net, "mobileone", norms="absorb").regions[2].norm == "norm"
    assert "stem.0  3x3 conv 3->8, stride 2, padding 1 and stem.1: conv3x3" in str(
        plan_branching(net, norms="absorb")
    )


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if float(x.sum()) > -1e9 else x


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("model", "absorbed"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), True),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.SyncBatchNorm(4)), True),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False)), True),
        (Untraceable(), True),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), False),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), False),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4)), False),
        (TwoReaders(), False),
        (_hooked(), False),
    ],
)
def test_only_a_norm_that_alone_reads_the_output_is_absorbed(model, absorbed) -> None:
    region = plan_branching(model, norms="absorb").regions[0]
    assert (region.norm is not None) == absorbed
    assert plan_branching(model).regions[0].norm is None


def test_the_choice_about_norms_is_checked(net: Net) -> None:
    with pytest.raises(InputError, match="needed 'keep' or 'absorb'"):
        branch(net, norms="drop")


@pytest.mark.parametrize("how", ["keep", "absorb"])
def test_a_fresh_block_has_the_given_kernel_and_new_norms(net: Net, how) -> None:
    net.stem[1].momentum = 0.25
    wide = branch(net, "dbb", norms=how, init="fresh")
    block = wide.stem[0]
    main = block.branches["conv3x3"]
    assert torch.equal(main.conv.weight, net.stem[0].weight)
    assert torch.equal(main.bn.running_mean, torch.zeros(8, dtype=F64))
    last = [branch[-1].weight for branch in block.branches.values()]
    own = net.stem[1].weight if how == "absorb" else torch.ones(8, dtype=F64)
    assert all(torch.equal(weight, own) for weight in last)
    if how == "absorb":
        assert torch.equal(main.bn.bias, net.stem[1].bias)
        assert (main.bn.momentum, main.bn.eps) == (0.25, 1e-3)
    assert torch.equal(wide.shared.branches["conv3x3"].bn.bias, net.shared.bias)


def test_the_choice_of_beginning_is_checked(net: Net) -> None:
    with pytest.raises(InputError, match="needed 'same' or 'fresh'"):
        branch(net, init="zero")
    with pytest.raises(InputError, match="drop one"):
        branch(net, init="fresh", calibrate=torch.randn(X, dtype=F64))
