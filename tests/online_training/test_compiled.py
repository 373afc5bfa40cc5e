"""Blocks whose norms run in compiled passes train as their branches do."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config
from torch import nn

import reparam
from reparam.branching.online import compiled as passes
from reparam.branching.online.compiled import Normed, normed_sum
from reparam.errors import UnsupportedModelError
from stepping import adamw, merged, merged_by_force, randomised, sgd, train_both
from zoo import CASES, ZooCase
from zoo.mobile import MobileOneBlock
from zoo.repvgg import RepVGGBlock

BLOCKS = [c for c in CASES if c.name in {
    "repvgg", "repvgg-stride2", "repvgg-grouped", "repvgg-3d", "acnet", "dbb-pad_then_norm",
    "dbb-scale-stride2", "mobileone-depthwise-stride2", "repmixer", "repvit", "pplcnetv2",
}]  # fmt: skip


@pytest.fixture
def _uncompiled() -> Iterator[None]:
    """The same passes, run by PyTorch operation by operation: no time to compile."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _by_passes(wide: nn.Module) -> nn.Module:
    """The online form in which every norm runs in passes, whatever that costs."""
    net = reparam.online(wide, statistics="running")
    for region in merged(net):
        region.mode, region.merged, region.compiled = "batch", frozenset(), True
    return net


def _batches(shape: tuple[int, ...], steps: int) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64) + 0.3 for _ in range(steps)]


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("case", BLOCKS, ids=lambda c: c.name)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_blocks_of_the_zoo_train_alike(case: ZooCase, layout) -> None:
    torch.manual_seed(0)
    wide = randomised(case.build())
    batches = _batches(case.shape, 3)
    if len(case.shape) == 4:
        batches = [x.contiguous(memory_format=layout) for x in batches]
    train_both(wide, _by_passes(wide), batches)


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.5}],
    ids=str,
)
def test_norms_of_every_kind(options: dict[str, object]) -> None:
    block = RepVGGBlock(6, 6)
    block.identity = nn.BatchNorm2d(6, **options)
    wide = randomised(nn.Sequential(block, nn.ReLU(inplace=True)))
    train_both(wide, _by_passes(wide), _batches((3, 6, 7, 8), 3))


@pytest.mark.usefixtures("_uncompiled")
def test_what_is_not_normalised_is_added_as_it_is() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.bare = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
            self.norm, self.outer = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = self.norm(self.wide(x))  # read twice, normalised once
            return self.outer(inner) + 0.5 * inner + self.bare(x) + x

    wide = randomised(Block())
    online = _by_passes(wide)
    assert merged(online)
    train_both(wide, online, _batches((3, 6, 7, 8), 3))


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_half_precision_have_statistics_in_float32(dtype) -> None:
    norms = [nn.BatchNorm2d(6).to(dtype=torch.float32) for _ in range(2)]
    expected = copy.deepcopy(norms)
    tensors = [(torch.randn(8, 6, 9, 9) + 20).to(dtype).requires_grad_() for _ in norms]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found = normed_sum([Normed(*pair) for pair in zip(norms, tensors, strict=True)], [])
    right = sum(norm.double()(x) for norm, x in zip(expected, wide, strict=True))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), right, rtol=0.02, atol=0.02)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (right * weights.double()).sum().backward()
    for left, x in zip(tensors, wide, strict=True):
        torch.testing.assert_close(left.grad.double(), x.grad, rtol=0.03, atol=0.03)
    for norm, other in zip(norms, expected, strict=True):
        torch.testing.assert_close(norm.running_var.double(), other.running_var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_fifty_compiled_steps_stay_together(optimizer) -> None:
    wide = randomised(nn.Sequential(RepVGGBlock(24, 24, activation=nn.ReLU), nn.Conv2d(24, 3, 1)))
    plan = reparam.online_plan(wide, torch.empty(64, 24, 64, 64), compile=True)
    assert plan.passes == {(3, 0)}
    online = plan.apply()
    assert plan.compile_seconds > 0
    assert str(plan.passes and len(plan.passes)) in str(plan).splitlines()[-1]
    for region in merged(online):
        region.merged = frozenset()  # small batches are no reason to run another way here
    train_both(wide, online, _batches((4, 24, 5, 6), 50), optimizer)
    # Other sizes, another number of threads, and copies, without compiling anew.
    train_both(copy.deepcopy(wide), copy.deepcopy(online), _batches((2, 24, 7, 3), 2), optimizer)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize(
    ("form", "build"),
    [
        (merged_by_force, lambda: MobileOneBlock(24, 24, groups=24)),
        (_by_passes, lambda: RepVGGBlock(24, 24, activation=nn.ReLU)),
    ],
    ids=["moments", "passes"],
)
def test_devices_train_alike(form, build, device: str) -> None:
    """On a GPU the passes are Triton's kernels, which Inductor writes."""
    wide = randomised(build()).to(device)
    online = form(wide)
    assert merged(online)
    train_both(wide, online, [x.to(device) for x in _batches((4, 24, 5, 6), 3)])


def test_without_a_compiler_the_message_says_what_to_do() -> None:
    wide = nn.Sequential(RepVGGBlock(24, 24).half())  # of a kind that nothing else compiles
    inductor = torch._inductor.config
    options = {"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True}
    with inductor.patch(options), pytest.raises(UnsupportedModelError, match="compile=True"):
        reparam.online(wide, torch.empty(64, 24, 64, 64), compile=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_passes_that_are_off_by_a_thousandth_are_not_used(dtype, monkeypatch) -> None:
    def off(function):
        def run(*args):
            first, *rest = function(*args)
            first = [t * 1.001 for t in first] if isinstance(first, list) else first * 1.001
            return first, *rest

        return run

    monkeypatch.setattr(passes, "_PASSES", {})
    monkeypatch.setattr(passes, "_compile", off)
    with pytest.raises(UnsupportedModelError):
        passes.compiled(passes.Kind((dtype, dtype)))
    monkeypatch.setattr(passes, "_compile", lambda function: function)
    passes.compiled(passes.Kind((dtype, dtype)))
