"""Fused weights in the author's own deploy class, whose folded layers have names of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reparam
from zoo import randomise


class Block(nn.Module):
    """As RepVGG's authors write one, with their names."""

    def __init__(self, channels: int, *, deploy: bool) -> None:
        super().__init__()
        self.deploy = deploy
        if deploy:
            self.rbr_reparam = nn.Conv2d(channels, channels, 3, padding=1)
            return
        self.rbr_identity = nn.BatchNorm2d(channels)
        for name, size in (("rbr_dense", 3), ("rbr_1x1", 1)):
            branch = nn.Sequential()
            branch.add_module("conv", nn.Conv2d(channels, channels, size, 1, size // 2, bias=False))
            branch.add_module("bn", nn.BatchNorm2d(channels))
            setattr(self, name, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.deploy:
            return torch.relu(self.rbr_reparam(x))
        return torch.relu(self.rbr_dense(x) + self.rbr_1x1(x) + self.rbr_identity(x))


class Net(nn.Module):
    def __init__(self, *, deploy: bool = False, blocks: int = 2) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*(Block(4, deploy=deploy) for _ in range(blocks)))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.stage1(x).mean((2, 3)))


def test_the_authors_deploy_class_takes_what_was_fused(tmp_path) -> None:
    net = randomise(Net()).double().eval()
    torch.save(reparam.fuse(net).state_dict(), tmp_path / "fused.pth")
    deploy = Net(deploy=True).double().eval()
    assert reparam.load_checkpoint(deploy, tmp_path / "fused.pth").complete
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(deploy(x), net(x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        deploy.stage1[1].rbr_reparam.weight[0, 0, 0, 0] += 1e-6
    assert not torch.allclose(deploy(x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_deploy_class_of_another_depth_takes_nothing(blocks: int, tmp_path) -> None:
    torch.save(reparam.fuse(randomise(Net()).eval()).state_dict(), tmp_path / "fused.pth")
    with pytest.raises(reparam.ReparamError, match="rbr_"):
        reparam.load_checkpoint(Net(deploy=True, blocks=blocks), tmp_path / "fused.pth")


def test_weights_that_are_not_fused_are_not_taken_for_it(tmp_path) -> None:
    torch.save(Net().state_dict(), tmp_path / "train.pth")
    with pytest.raises(reparam.ReparamError, match="rbr_"):
        reparam.load_checkpoint(Net(deploy=True), tmp_path / "train.pth")


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
@pytest.mark.slow
def test_the_deploy_form_of_timm(name: str, tmp_path) -> None:
    timm = pytest.importorskip("timm")
    net = randomise(timm.create_model(name, num_classes=5)).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.save(reparam.fuse(net, x).state_dict(), tmp_path / "fused.pth")
    deploy = timm.create_model(name, num_classes=5)
    deploy = timm.utils.model.reparameterize_model(deploy).eval()
    reparam.load_checkpoint(deploy, tmp_path / "fused.pth")
    reparam.verify(net, deploy, x).raise_if_different()
