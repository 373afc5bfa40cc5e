"""Pruned nets: what goes, what stays equal, and that nothing of the user's changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

import reparam
from prunable import FUSED, Concatenating, Flattening, images, repvgg, resnet, spec, straight
from reparam import models
from reparam.deploy.benchmarking import profile
from reparam.lab.pruning import load_pruned
from reparam.lab.pruning.graph import cut, find_groups
from reparam.lab.pruning.proof import compare

pytest.importorskip("torch_pruning")

EXACT = 1e-12


@torch.no_grad()
def deaden(net: nn.Module) -> nn.Module:
    """Let half of the channels of every convolution (in each of two groups) write nothing."""
    for module in net.modules():
        if isinstance(module, _ConvNd) and module.out_channels > 5:
            width = module.out_channels
            dead = torch.arange(width) % (width // 2) >= width // 4
            weight = module.weight.transpose(0, 1) if module.transposed else module.weight
            weight[dead] = 0
            module.bias[dead] = 0
    return net


def difference(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).abs().max())


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED.keys())
def test_channels_that_write_nothing_go_first_and_nothing_changes(make) -> None:
    net = deaden(make())
    result = reparam.prune(net, images(), macs=0.6, multiple=4)
    assert any(layer.changed for layer in result.layers)
    size = 8 if isinstance(net, Flattening) else 11
    x = images(3, size)
    assert difference(net, result.model, x) < EXACT * float(net(x).detach().abs().max())


def test_exactly_the_dead_half_goes() -> None:
    net = deaden(reparam.fuse(repvgg()))
    half = models.RepVGG(spec((8, 16)).deploy(), num_classes=5)
    left = profile(half.double().eval(), images()).multiply_adds
    share = left / profile(net, images()).multiply_adds
    result = reparam.prune(net, images(), macs=share + 1e-9, multiple=4)
    assert result.multiply_adds[1] == left
    assert {after[1] for after in result.widths.values()} == {8, 16, 5}


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED.keys())
def test_widths_are_multiples_and_macs_are_met_by_the_largest_net(make) -> None:
    net = make()
    result = reparam.prune(net, images(), macs=0.5)
    full, left = result.multiply_adds
    assert left <= 0.5 * full
    assert left == profile(result.model, images()).multiply_adds
    for layer in result.layers:
        assert layer.after[1] % 8 == 0 or layer.after[1] == layer.before[1]
        module = result.model.get_submodule(layer.name)
        assert module.weight.shape[:2].numel() <= layer.after[0] * layer.after[1]
    over = [t for t in result.trials if t.multiply_adds > 0.5 * full]
    under = [t for t in result.trials if t.multiply_adds <= 0.5 * full]
    tried = min(t.steps for t in under)
    assert tried == max((t.steps for t in over), default=0) + 1


def test_nothing_of_the_given_net_changes_and_nothing_is_shared() -> None:
    net = reparam.fuse(repvgg())
    next(net.parameters()).requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    result = reparam.prune(net, images(), macs=0.5, data=(images(4), torch.tensor([0, 1, 2, 3])))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    flags = [parameter.requires_grad for parameter in net.parameters()]
    assert flags == [parameter.requires_grad for parameter in result.model.parameters()]
    assert not flags[0]
    own = {value.untyped_storage().data_ptr() for value in net.state_dict().values()}
    new = {value.untyped_storage().data_ptr() for value in result.model.state_dict().values()}
    assert not own & new


def test_class_mode_and_type_stay_and_any_size_runs() -> None:
    net = reparam.fuse(repvgg())
    model = reparam.prune(net, images(), macs=0.5).model
    assert type(model) is models.RepVGG
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model(images(1, 9)).shape == (1, 5)
    assert model(images(7, 16)).shape == (7, 5)


def test_float32_is_pruned_and_checked_too() -> None:
    net = deaden(reparam.fuse(repvgg())).float()
    x = images().float()
    model = reparam.prune(net, x, macs=0.6, multiple=4).model
    assert difference(net, model, x) < 1e-5


def test_a_residual_net_ties_layers_together_and_a_single_path_does_not() -> None:
    tied = reparam.prune(reparam.fuse(resnet()), images(), macs=0.4)
    assert {group.layers for group in tied.groups} == {
        ("0", "3.conv2"),
        ("4.conv2", "4.downsample.0", "5.conv2"),
    }
    for group in tied.groups:
        assert {tied.widths[name][1] for name in group.layers} == {group.after}
    assert "3 layers share 32 -> " in str(tied)
    assert reparam.prune(reparam.fuse(repvgg()), images(), macs=0.4).groups == ()


def test_kept_layers_keep_their_channels() -> None:
    result = reparam.prune(straight(), images(), macs=0.8, keep=["2"])
    assert result.widths["2"][1] == 24
    assert result.widths["0"][1] == 8
    assert [(kept.where, kept.why) for kept in result.kept] == [("2", "2 is to be kept")]


def test_outputs_of_the_net_stay() -> None:
    features = models.RepVGG(spec().deploy(), num_classes=0).double().eval()
    result = reparam.prune(features, images(), macs=0.5)
    assert result.model(images()).shape == (2, 32)
    assert [kept.where for kept in result.kept] == ["stages.1.1.branches"]


class Normalising(nn.Module):
    """A norm over all channels, which no smaller net can have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 16, 3)
        self.third = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        return self.third(functional.softmax(y, dim=1))


def test_what_cannot_shrink_is_left_alone_with_its_reason() -> None:
    net = Normalising().double().eval()
    result = reparam.prune(net, images(), macs=0.8)
    assert result.widths["second"][1] == 16
    assert result.widths["first"][1] == 8
    reasons = {kept.where: kept.why for kept in result.kept}
    assert reasons.keys() == {"second", "third"}
    assert "computes something else than with them masked" in reasons["second"]
    assert reasons["third"] == "its channels are an output of the net"


def test_duplicate_channels_are_made_up_for_on_data() -> None:
    net = straight()
    with torch.no_grad():
        # The upper half repeats the lower, so that what is left can say all of it.
        net[0].weight[8:] = net[0].weight[:8]
        net[0].bias[8:] = net[0].bias[:8]
        net[2].weight[:, 8:] *= 0.3
    data = (images(16), torch.zeros(16, dtype=torch.int64))
    asked = {"macs": 0.7, "keep": ["2"], "data": data}
    plain = reparam.prune(net, images(), reconstruct=False, **asked)
    solved = reparam.prune(net, images(), **asked)
    assert plain.solved == ()
    assert solved.solved == ("2",)
    x = images(16)
    assert difference(net, plain.model, x) > 1e-3
    assert difference(net, solved.model, x) < 0.1 * difference(net, plain.model, x)


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED.keys())
def test_solved_layers_come_nearer_to_the_given_net(make) -> None:
    net = make()
    asked = {"macs": 0.5, "data": [(images(16), torch.zeros(16, dtype=torch.int64))]}
    plain = reparam.prune(net, images(), reconstruct=False, **asked)
    solved = reparam.prune(net, images(), **asked)
    assert solved.widths == plain.widths
    assert solved.solved
    x = images(32)
    with torch.no_grad():
        errors = [float((r.model(x) - net(x)).square().mean()) for r in (plain, solved)]
    assert errors[1] < 0.7 * errors[0]


def test_branches_grow_again_and_fold_again() -> None:
    pruned = reparam.prune(reparam.fuse(repvgg()), images(), macs=0.5).model
    wide = reparam.branch(pruned, "repvgg")
    x = images(3, 10)
    assert difference(pruned, wide, x) < EXACT
    assert sum(isinstance(m, nn.BatchNorm2d) for m in wide.modules()) > 0
    optimizer = torch.optim.SGD(wide.train().parameters(), lr=0.1)
    functional.cross_entropy(wide(x), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    wide.eval()
    again = reparam.fuse(wide)
    assert difference(again, pruned, x) > 1e-3
    assert difference(again, wide, x) < EXACT
    assert [m.weight.shape for m in again.modules() if isinstance(m, nn.Conv2d)] == [
        m.weight.shape for m in pruned.modules() if isinstance(m, nn.Conv2d)
    ]


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED.keys())
def test_weights_go_back_into_the_net_that_was_pruned(make, tmp_path) -> None:
    net = make()
    model = reparam.prune(net, images(), macs=0.5).model
    torch.save(model.state_dict(), tmp_path / "pruned.pth")
    again = load_pruned(net, tmp_path / "pruned.pth")
    assert difference(model, again, images()) == 0.0
    assert str(again) == str(model)


def test_weights_of_another_net_are_refused(tmp_path) -> None:
    torch.save(Concatenating().state_dict(), tmp_path / "other.pth")
    with pytest.raises(reparam.ReparamError, match=r"other.pth: the weights are not of a net prun"):
        load_pruned(straight(), tmp_path / "other.pth")
    other = straight()
    other[2] = nn.Conv2d(16, 24, 5)
    torch.save(other.state_dict(), tmp_path / "kernel.pth")
    with pytest.raises(reparam.ReparamError, match="pruning changes the first two dimensions"):
        load_pruned(straight(), tmp_path / "kernel.pth")


def test_latency_is_measured_and_met() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 4, 1),
    ).eval()  # fmt: skip
    x = torch.zeros(1, 3, 48, 48)
    result = reparam.prune(net, x, latency=0.8, engine="eager", threads=1, rounds=3)
    assert result.latency is not None
    assert result.latency.ratio <= 0.8
    assert result.latency.engine == "eager"
    assert all(trial.latency is not None for trial in result.trials)
    with pytest.raises(reparam.ReparamError, match=r"0\.0001 ms cannot be reached: the smallest"):
        reparam.prune(net, x, latency="0.1us", engine="eager", threads=1, rounds=1)
    measured = reparam.prune(net, x, macs=0.5, engine="eager", threads=1, rounds=1)
    assert measured.latency is not None
    assert "ms in eager" in str(measured)


CASES = {
    "no target": ({}, r"macs=.* or latency="),
    "two targets": ({"macs": 0.5, "latency": 0.5}, r"macs=.* or latency="),
    "macs of one": ({"macs": 1.0}, "macs is 1; needed is the share that is to be left"),
    "macs of nothing": ({"macs": 0.0}, "macs is 0; needed"),
    "latency above one": ({"latency": 2.0}, "for a time give its unit"),
    "latency in words": ({"latency": "fast"}, "latency is 'fast'; needed"),
    "latency of no time": ({"latency": "0 ms"}, "a time above 0 is needed"),
    "unknown engine": ({"macs": 0.5, "engine": "abacus"}, "abacus"),
    "unknown importance": ({"macs": 0.5, "importance": "luck"}, "it must be one of magnitude"),
    "no data": ({"macs": 0.5, "importance": "first_order"}, "there are no data"),
    "empty data": ({"macs": 0.5, "importance": "first_order", "data": []}, "holds no batch"),
    "images alone": ({"macs": 0.5, "data": [images()]}, "needed are pairs of inputs and targets"),
    "no training form": ({"macs": 0.5, "importance": "bn_scale"}, "give trained="),
    "multiple of nothing": ({"macs": 0.5, "multiple": 0}, "multiple is 0"),
    "multiple too large": ({"macs": 0.5, "multiple": 64}, "no channel of this RepVGG can go"),
    "rounds": ({"macs": 0.5, "rounds": 0}, "rounds is 0"),
    "too small": ({"macs": 0.001}, r"0.001 of the multiply-adds cannot be reached: .* are left"),
    "unknown layer": ({"macs": 0.5, "keep": ["nowhere"]}, "there is no layer 'nowhere' to keep"),
}


@pytest.mark.parametrize(("options", "message"), CASES.values(), ids=CASES.keys())
def test_bad_arguments_are_refused(options, message) -> None:
    with pytest.raises(reparam.errors.InputError, match=message):
        reparam.prune(reparam.fuse(repvgg()), images(), **options)


def test_a_net_that_is_not_fused_is_refused() -> None:
    with pytest.raises(reparam.errors.InputError, match=r"not fused: 5 regions would fold.*fuse\("):
        reparam.prune(repvgg(), images(), macs=0.5)


def test_wrong_shapes_and_training_mode_are_refused() -> None:
    net = reparam.fuse(repvgg())
    with pytest.raises(reparam.errors.InputError, match="does not run on inputs of shape 2x5x8x8"):
        reparam.prune(net, torch.zeros(2, 5, 8, 8, dtype=torch.float64), macs=0.5)
    with pytest.raises(reparam.TrainingModeError):
        reparam.prune(resnet().train(), images(), macs=0.5)
    with pytest.raises(reparam.errors.InputError, match=r"a torch\.nn\.Module"):
        reparam.prune(torch.relu, images(), macs=0.5)  # type: ignore[arg-type]


def test_a_net_without_the_wrong_channels_is_found_out() -> None:
    net = reparam.fuse(resnet())
    groups, _ = find_groups(net, (images(),), ())
    asked = {group.root: torch.arange(group.width // 2) for group in groups}
    other = {root: channels + len(channels) for root, channels in asked.items()}
    assert compare(net, cut(net, (images(),), asked), groups, asked, (images(),)).ok
    assert not compare(net, cut(net, (images(),), other), groups, asked, (images(),)).ok
    for root in asked:
        swapped = asked | {root: other[root]}
        assert not compare(net, cut(net, (images(),), swapped), groups, asked, (images(),)).ok
