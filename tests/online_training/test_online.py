"""Merged blocks train as their branches do, step by step."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import reparam
from reparam.branching.online.costs import choices
from reparam.branching.online.placing import regions_of
from reparam.branching.online.region import Region
from reparam.errors import InputError
from stepping import (
    adamw,
    assert_same_state,
    merged,
    merged_by_force,
    randomised,
    sgd,
    train_both,
)  # fmt: skip
from zoo import CASES, ZooCase
from zoo.mobile import MobileOneBlock, RepGhostModule
from zoo.repvgg import RepVGGBlock

MERGED = {
    "repvgg", "repvgg-stride2", "repvgg-grouped", "repvgg-dilated", "repvgg-3d", "yolo-repconv",
    "dbb-scale-stride2", "dbb-pad_then_norm", "dbb-border", "mobileone-depthwise",
    "mobileone-depthwise-stride2", "mobileone-pointwise-skip", "repmixer", "repvit", "fastvit",
    "repghost", "pplcnetv2", "unireplk-dilated-only",
}  # fmt: skip
"""Blocks with branches that can merge."""

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def _built(case: ZooCase) -> nn.Module:
    torch.manual_seed(0)
    wide = randomised(case.build())
    for module in wide.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # its draws depend on what else draws
    return wide


def _batches(shape: tuple[int, ...], steps: int) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64) + 0.3 for _ in range(steps)]


@pytest.mark.parametrize("case", [c for c in CASES if c.name in MERGED], ids=lambda c: c.name)
def test_blocks_of_the_zoo_train_alike(case: ZooCase) -> None:
    wide = _built(case)
    count = max(len(choices(region.steps)) for region in merged(merged_by_force(wide)))
    for choice in range(count):
        right = merged_by_force(wide, choice)
        train_both(copy.deepcopy(wide), right, _batches(case.shape, 2))


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize(
    "block",
    [
        lambda: MobileOneBlock(6, 6, groups=6, activation=nn.ReLU),
        lambda: MobileOneBlock(6, 6, groups=6, stride=2, activation=nn.ReLU),
        lambda: MobileOneBlock(6, 6, kernel=1, activation=nn.ReLU),
        lambda: RepVGGBlock(6, 6, activation=nn.ReLU),
        lambda: RepGhostModule(6, 6),
    ],
    ids=["depthwise", "depthwise-stride2", "pointwise", "repvgg", "repghost"],
)
def test_fifty_steps_stay_together(block, optimizer) -> None:
    net = nn.Sequential(block(), nn.Conv2d(6, 3, 1))
    wide = randomised(net)
    online = merged_by_force(wide, 0)
    train_both(wide, online, _batches((4, 6, 7, 6), 50), optimizer)


def test_class_parameters_and_keys_are_the_models() -> None:
    wide = reparam.models.mobileone_s0(num_classes=10).train()
    before = copy.deepcopy(wide.state_dict())
    online = reparam.online(wide)
    assert type(online) is type(wide)
    assert [n for n, _ in online.named_parameters()] == [n for n, _ in wide.named_parameters()]
    assert [n for n, _ in online.named_modules()] == [n for n, _ in wide.named_modules()]
    assert all(
        isinstance(a, type(b)) for a, b in zip(online.modules(), wide.modules(), strict=True)
    )
    online.load_state_dict(wide.state_dict())
    shared = {p.data_ptr() for p in wide.parameters()} & {p.data_ptr() for p in online.parameters()}
    assert not shared
    assert len(list(regions_of(online))) > 30
    assert not list(regions_of(wide))
    for name, value in before.items():
        assert torch.equal(value, wide.state_dict()[name])


def test_undo_gives_the_branches_back_at_any_step() -> None:
    wide = randomised(nn.Sequential(MobileOneBlock(8, 8, kernel=1), nn.ReLU()))
    online = merged_by_force(wide, 0)
    batches = _batches((4, 8, 9, 9), 4)
    train_both(wide, online, batches[:2])
    back = reparam.online(online, enabled=False)
    assert not list(regions_of(back))
    assert type(back[0]) is MobileOneBlock
    back.load_state_dict(wide.state_dict())
    train_both(wide, back, batches[2:])
    assert list(regions_of(reparam.online(online)))  # and the other way, from the online form


def test_modes_change_how_blocks_run_and_come_back() -> None:
    online = reparam.online(randomised(nn.Sequential(MobileOneBlock(8, 8, kernel=1))))
    (region,) = regions_of(online)
    with reparam.online_mode(online, "branches") as same:
        assert same is online
        assert region.mode == "branches"
    assert region.mode == "batch"
    with pytest.raises(InputError), reparam.online_mode(online, "backwards"):
        pass
    with pytest.raises(InputError):
        reparam.online(online, statistics="none")


@pytest.mark.parametrize("name", ["acnet", "dbb-pad_then_norm", "repvit", "linear-bn", "replk"])
def test_running_statistics_make_every_block_one_convolution(name: str) -> None:
    """Fixed statistics: eval mode's function and gradients, nothing tracked, one convolution."""
    (case,) = (c for c in CASES if c.name == name)
    wide = _built(case)
    tuned = reparam.online(wide, statistics="running")
    before = copy.deepcopy(tuned.state_dict())
    assert not [r for r in regions_of(tuned) if r.mode != "running"]
    x = case.inputs()
    outputs = wide.eval()(x), tuned.train()(x)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-11)
    weights = torch.randn_like(outputs[0])
    for y in outputs:
        (y * weights).sum().backward()
    for expected, found in zip(wide.parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-10)
    assert all(torch.equal(before[name], value) for name, value in tuned.state_dict().items())


def test_eval_mode_and_frozen_norms() -> None:
    wide = randomised(MobileOneBlock(8, 8, groups=8))
    online = merged_by_force(wide)
    for net in (wide, online):
        net.convs[1].eval()
        net.skip.eval()
    train_both(wide, online, _batches((3, 8, 7, 7), 2))
    x = _batches((3, 8, 7, 7), 1)[0]
    torch.testing.assert_close(online.eval()(x), wide.eval()(x), rtol=1e-10, atol=1e-12)
    assert_same_state(wide, online)


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
)
def test_norms_of_every_kind(options: dict[str, object]) -> None:
    block = RepVGGBlock(6, 6, groups=6)
    block.identity = nn.BatchNorm2d(6, **options)
    block.pointwise[1] = nn.BatchNorm2d(6, **options)
    wide = randomised(block)
    online = merged_by_force(wide)
    train_both(wide, online, _batches((3, 6, 7, 8), 3))


def test_copies_and_pickles() -> None:
    online = reparam.online(randomised(MobileOneBlock(8, 8, kernel=1)))
    x = _batches((4, 8, 6, 6), 1)[0]
    for other in (copy.deepcopy(online), pickle.loads(pickle.dumps(online))):  # noqa: S301 (ours)
        assert [type(r) for r in regions_of(other)] == [Region]
        torch.testing.assert_close(other(x), copy.deepcopy(online)(x))


def test_an_online_net_folds_as_its_branches_do() -> None:
    online = reparam.online(randomised(MobileOneBlock(8, 8, groups=8))).eval()
    fused = reparam.fuse(online)
    assert [type(m) for m in fused.modules() if list(m.parameters(recurse=False))] == [nn.Conv2d]
    x = _batches((2, 8, 7, 7), 1)[0]
    torch.testing.assert_close(fused(x), online(x), rtol=1e-9, atol=1e-11)


def test_hooked_layers_are_left_alone() -> None:
    block = randomised(MobileOneBlock(8, 8, kernel=1))
    seen = []
    block.convs[0][1].register_forward_hook(lambda *_: seen.append(1))
    online = reparam.online(block)
    online(_batches((4, 8, 6, 6), 1)[0])
    assert seen


def test_one_value_per_channel_is_refused_as_pytorch_does() -> None:
    online = reparam.online(nn.Sequential(MobileOneBlock(8, 8, kernel=1)))
    with pytest.raises(ValueError, match="more than 1 value"):
        online(torch.zeros(1, 8, 1, 1))
