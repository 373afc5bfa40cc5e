"""A fused net comes back on a fresh instance of its class, from the file alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from checking import Snapshot
from reparam.errors import CheckpointError
from reparam.models import RepVGG, RepVGGSpec
from zoo import randomise

safetensors = pytest.importorskip("safetensors.torch")


class Block(nn.Module):
    """Branches, a norm behind an activation, and one whose scale may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.last = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        y = self.norms[0](self.wide(x)) + self.norms[1](self.narrow(x)) + self.norms[2](x)
        return self.last(torch.relu(y))


def own() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3), Block(), nn.BatchNorm2d(4), nn.ReLU(), *head)


def ours() -> nn.Module:
    spec = RepVGGSpec(depths=(2,), widths=(4,), stem_width=4, stem_stride=1, strides=2)
    return RepVGG(spec, num_classes=5)


def one_dimensional() -> nn.Module:
    layers = (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AdaptiveAvgPool1d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5))


class Words(nn.Module):
    """Whole numbers in: no image can be made up for it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.norm = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.conv(self.table(x).transpose(1, 2)))


def nothing_folds() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU())


NETS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "own": (own, torch.randn(2, 3, 9, 8)),
    "ours": (ours, torch.randn(2, 3, 16, 16)),
    "words": (Words, torch.randint(0, 9, (2, 7))),
    "nothing folds": (nothing_folds, torch.randn(2, 3, 9, 8)),
    "1-d": (one_dimensional, torch.randn(2, 3, 9)),
}


def by_export(fused: nn.Module, path: Path, x: torch.Tensor) -> Path:
    reparam.export(fused, path.with_suffix(".safetensors"), x)
    return path.with_suffix(".safetensors")


def by_safetensors(fused: nn.Module, path: Path, _: torch.Tensor) -> Path:
    safetensors.save_file(fused.state_dict(), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def by_torch(fused: nn.Module, path: Path, _: torch.Tensor) -> Path:
    torch.save({"state_dict": fused.state_dict()}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """With other numbers everywhere but eps, which no state dict holds; some scales negative."""
    one = build()
    eps = {name: m.eps for name, m in one.named_modules() if hasattr(m, "eps")}
    one = randomise(one).eval()
    with torch.no_grad():
        for name, module in one.named_modules():
            if name in eps:
                module.eps = eps[name]
                module.weight[0].neg_()
    return one


@pytest.mark.parametrize("write", [by_export, by_safetensors, by_torch])
@pytest.mark.parametrize("net", NETS)
def test_a_fresh_instance_becomes_the_fused_net(net, write, tmp_path):
    build, x = NETS[net]
    fused = reparam.fuse(trained(build), x)
    path = write(fused, tmp_path / "net", x)
    fresh = build().train()
    before = Snapshot.of(fresh)
    told = write is by_export
    again = reparam.load_fused(fresh, path, x if net == "words" and not told else None)
    before.assert_unchanged(fresh)
    assert not any(module.training for module in again.modules())
    assert [*again.state_dict()] == [*fused.state_dict()]
    torch.testing.assert_close(again(x), fused(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_is_that_of_the_file(dtype, tmp_path):
    fused = reparam.fuse(trained(ours), NETS["ours"][1]).to(dtype)
    again = reparam.load_fused(ours(), by_safetensors(fused, tmp_path / "net", torch.empty(0)))
    x = NETS["ours"][1].to(dtype)
    torch.testing.assert_close(again(x), fused(x), rtol=0, atol=0)


def test_norms_that_stayed_in_the_file_stay(tmp_path):
    part = reparam.fuse(trained(ours), where="stem")
    path = by_torch(part, tmp_path / "part", torch.empty(0))
    again = reparam.load_fused(ours(), path)
    x = NETS["ours"][1]
    assert any(isinstance(module, nn.BatchNorm2d) for module in again.modules())
    torch.testing.assert_close(again(x), part(x), rtol=1e-5, atol=1e-5)


class TwoHeads(nn.Module):
    """Two heads, of which one is kept, and a gate that may be fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
        self.right = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))

    def forward(self, x, gate):
        x = self.stem(x) * gate
        return self.left(x), self.right(x)


@pytest.mark.parametrize("how", [{"outputs": 0}, {"fixed": True}, {"outputs": [1], "fixed": True}])
def test_a_net_that_was_cut_is_cut_again(how, tmp_path):
    x, gate = torch.randn(2, 3, 8, 8), torch.full((4, 1, 1), 0.5)
    how = how | ({"fixed": {"gate": gate}} if "fixed" in how else {})
    given = (x,) if "fixed" in how else (x, gate)
    cut = reparam.fuse(trained(TwoHeads), given, **how)
    path = by_torch(cut, tmp_path / "cut", x)
    again = reparam.load_fused(TwoHeads(), path, given, **how)
    torch.testing.assert_close(again(*given), cut(*given), rtol=0, atol=0)
    if "outputs" in how:
        with pytest.raises(CheckpointError, match="outputs="):
            reparam.load_fused(TwoHeads(), path, (x, gate))


def test_an_exported_net_whose_input_was_fixed_is_not_taken_for_the_whole(tmp_path):
    """What is fixed may fold without a trace in the names; the file tells what it was given."""
    x, gate = torch.randn(2, 3, 8, 8), torch.full((4, 1, 1), 0.5)
    cut = reparam.fuse(trained(Gated), x, fixed={"gate": gate})
    whole = reparam.fuse(trained(Gated), (x, gate))
    assert cut.state_dict().keys() == whole.state_dict().keys()
    path = by_export(cut, tmp_path / "cut", x)
    for example in (None, (x, gate)):
        with pytest.raises(CheckpointError, match="fixed="):
            reparam.load_fused(Gated(), path, example)
    again = reparam.load_fused(Gated(), path, x, fixed={"gate": gate})
    torch.testing.assert_close(again(x), cut(x), rtol=0, atol=0)


class Gated(nn.Module):
    """A gate right behind a convolution, into which it folds once it is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x, gate):
        return self.norm(self.conv(x)) * gate


def test_what_folds_does_not_depend_on_the_factors_of_a_fresh_instance(tmp_path):
    """Nets that start their last norms at zero have none to divide by until they are trained."""

    def build() -> nn.Module:
        first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
        block = Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4)))
        net = nn.Sequential(first, block, nn.Conv2d(4, 2, 1))
        nn.init.zeros_(block.inner[2].weight)
        return net

    fused = reparam.fuse(one := trained(build), x := torch.randn(2, 3, 8, 8))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 1, one
    again = reparam.load_fused(build(), by_torch(fused, tmp_path / "net", x))
    torch.testing.assert_close(again(x), fused(x), rtol=0, atol=0)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def test_other_files_are_refused(tmp_path):
    model = trained(ours)
    as_it_is = by_torch(model, tmp_path / "model", torch.empty(0))
    with pytest.raises(CheckpointError, match="before it is fused"):
        reparam.load_fused(ours(), as_it_is)
    other = by_torch(reparam.fuse(trained(own)), tmp_path / "other", torch.empty(0))
    with pytest.raises(CheckpointError, match="RepVGG"):
        reparam.load_fused(ours(), other)
    cut = reparam.fuse(model).state_dict()
    cut.popitem()
    torch.save(cut, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError):
        reparam.load_fused(ours(), tmp_path / "cut.pth")
