"""Models in odd states, wrapped models, and what the result can be used for."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import reparam
from checking import Snapshot, assert_same_function, worst_error
from counting import count
from reparam import Why
from reparam.errors import TrainingModeError, UnsupportedModelError, VerificationError
from reparam.fusing.compare import compare_models
from small_nets import Lambda, conv, image, norm
from zoo import randomise

TOLERANCE = 1e-12


class Block(nn.Module):
    """Two branches and an activation; importable, so that it can be pickled."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.point = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.dense(x) + self.point(x))


class Net(nn.Module):
    """A stem, two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.stem_norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 5)
        self.names = ["a", "b"]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem_norm(self.stem(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    return randomise(Net().double())


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 12, 14, dtype=torch.float64)


def _why(plan: reparam.Plan) -> set[tuple[str, Why]]:
    return {(r.where, r.reason.kind) for r in plan.refusals}


# ------------------------------------------------------------------------------- odd states


def test_training_mode_is_an_error(net: nn.Module) -> None:
    with pytest.raises(TrainingModeError, match="eval"):
        reparam.fuse(net.train())


def test_a_single_norm_in_training_mode_is_named(net: Net) -> None:
    net.blocks[1].point[1].train()
    with pytest.raises(TrainingModeError, match=r"blocks\.1\.point\.1"):
        reparam.plan(net)


def test_a_norm_without_running_statistics_is_refused(net: Net, x: torch.Tensor) -> None:
    net.stem_norm = nn.BatchNorm2d(4, track_running_stats=False).double().eval()
    plan = reparam.plan(net)
    fused = plan.apply()
    assert ("stem_norm", Why.NO_STATISTICS) in _why(plan)
    assert count(fused, x)[1].norms == 1
    assert_same_function(net, fused, x, tolerance=TOLERANCE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_and_the_rest_folds(
    net: Net, x: torch.Tensor, bad: float
) -> None:
    with torch.no_grad():
        net.blocks[0].dense[0].weight[0, 0, 0, 0] = bad
    plan = reparam.plan(net)
    assert ("blocks.0.dense.0", Why.NOT_FINITE) in _why(plan)
    fused = plan.apply()
    assert count(fused, x)[1].norms <= 2
    torch.testing.assert_close(fused(x), net(x), equal_nan=True, rtol=1e-12, atol=1e-12)


def test_zero_variance_without_epsilon_is_refused(net: Net, x: torch.Tensor) -> None:
    net.stem_norm.eps = 0.0
    net.stem_norm.running_var[1] = 0.0
    plan = reparam.plan(net)
    assert ("stem_norm", Why.NO_SCALE) in _why(plan)
    torch.testing.assert_close(plan.apply()(x), net(x), equal_nan=True, rtol=1e-12, atol=1e-12)


def test_zero_variance_with_an_epsilon_folds(net: Net, x: torch.Tensor) -> None:
    net.stem_norm.running_var.zero_()
    fused = reparam.fuse(net)
    assert count(fused, x)[1].norms == 0
    assert_same_function(net, fused, x, tolerance=TOLERANCE)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_script_module_is_a_clear_error(net: nn.Module, x: torch.Tensor, how: str) -> None:
    scripted = torch.jit.script(net) if how == "script" else torch.jit.trace(net, x)
    with pytest.raises(UnsupportedModelError, match="ScriptModule"):
        reparam.fuse(scripted)


@pytest.mark.parametrize("what", ["blocks.0.dense.0", "blocks.0.dense.1", "blocks.0.point"])
@pytest.mark.parametrize("when", ["forward", "forward_pre"])
def test_a_hook_inside_a_region_is_refused_and_still_fires(
    net: Net, x: torch.Tensor, what: str, when: str
) -> None:
    calls: list[str] = []

    def hook(*_: object) -> None:
        calls.append(what)

    getattr(net.get_submodule(what), f"register_{when}_hook")(hook)
    plan = reparam.plan(net)
    assert Why.HOOKED in {kind for _, kind in _why(plan)}
    fused = plan.apply()
    calls.clear()
    assert_same_function(net, fused, x, tolerance=TOLERANCE)
    assert calls == [what, what]  # once in each of the two models
    assert count(fused, x)[1].norms <= 2


def test_a_hook_that_changes_a_value_keeps_its_effect(net: Net, x: torch.Tensor) -> None:
    net.blocks[0].dense[0].register_forward_hook(lambda _module, _args, out: out * 3)
    assert_same_function(net, reparam.fuse(net), x, tolerance=TOLERANCE)


def test_a_hook_around_a_rewritten_block_sees_the_same(net: Net, x: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []
    net.blocks[0].register_forward_hook(lambda _module, _args, out: seen.append(out.detach()))
    fused = reparam.fuse(net)
    assert count(fused, x)[1].norms == 0
    seen.clear()
    net(x)
    fused(x)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-12, atol=1e-12)


def test_half_precision_statistics_kept_in_float32(net: Net, x: torch.Tensor) -> None:
    """Autocast recipes keep norms in float32 in a half model; the result stays half."""
    net.half()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.float()
    fused = reparam.fuse(net, x.half())
    assert fused(x.half()).dtype == torch.float16
    error, _, _ = worst_error(net, fused, x.half())
    assert error <= 16 * torch.finfo(torch.float16).eps


def test_channels_last_is_kept(net: Net, x: torch.Tensor) -> None:
    net = net.to(memory_format=torch.channels_last)
    fused = reparam.fuse(net)
    assert fused.blocks(net.stem(x)).is_contiguous(memory_format=torch.channels_last)
    weights = [p for p in fused.parameters() if p.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert_same_function(net, fused, x, tolerance=TOLERANCE)


def test_contiguous_stays_contiguous(net: Net) -> None:
    assert all(p.is_contiguous() for p in reparam.fuse(net).parameters())


def test_uninitialised_lazy_modules_are_a_clear_error() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(reparam.ReparamError, match=r"[Ll]azy|uninitiali[sz]ed"):
        reparam.fuse(lazy)


# ------------------------------------------------------------------------------- wrappers


def _check_unwrapped(net: nn.Module, fused: nn.Module, x: torch.Tensor) -> None:
    assert type(fused) is type(net)
    assert not any(key.startswith(("module.", "_orig_mod.")) for key in fused.state_dict())
    assert count(fused, x)[1].norms == 0
    assert_same_function(net, fused, x, tolerance=TOLERANCE)


def test_torch_compile_is_unwrapped(net: nn.Module, x: torch.Tensor) -> None:
    _check_unwrapped(net, reparam.fuse(torch.compile(net)), x)


def test_data_parallel_is_unwrapped(net: nn.Module, x: torch.Tensor) -> None:
    _check_unwrapped(net, reparam.fuse(nn.DataParallel(net)), x)


def test_distributed_data_parallel_is_unwrapped(
    net: nn.Module, x: torch.Tensor, tmp_path: object
) -> None:
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        _check_unwrapped(net, reparam.fuse(wrapped), x)
    finally:
        distributed.destroy_process_group()


def test_an_averaged_model_is_unwrapped_or_folded_inside(net: nn.Module, x: torch.Tensor) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(net).eval()
    fused = reparam.fuse(averaged)
    assert count(fused, x)[1].norms == 0
    assert_same_function(net, fused, x, tolerance=TOLERANCE)


# ------------------------------------------------------------------------------- the result


def test_input_is_untouched_and_shares_nothing(net: nn.Module, x: torch.Tensor) -> None:
    before = Snapshot.of(net)
    fused = reparam.fuse(net)
    theirs = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    ours = {t.untyped_storage().data_ptr() for t in fused.state_dict().values()}
    assert not theirs & ours
    expected = net(x)
    with torch.no_grad():
        for tensor in [*fused.parameters(), *fused.buffers()]:
            tensor.zero_()
    before.assert_unchanged(net)
    assert torch.equal(net(x), expected)


def test_a_plan_can_be_applied_twice(net: nn.Module, x: torch.Tensor) -> None:
    plan = reparam.plan(net)
    one, two = plan.apply(), plan.apply()
    with torch.no_grad():
        for p in one.parameters():
            p.zero_()
    assert_same_function(net, two, x, tolerance=TOLERANCE)


def test_everything_outside_the_regions_is_kept(net: Net, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    assert type(fused) is Net
    assert fused.names == ["a", "b"]
    assert isinstance(fused.blocks, nn.Sequential)
    assert len(fused.blocks) == 2
    assert "head.weight" in fused.state_dict()
    assert torch.equal(fused.head.weight, net.head.weight)
    torch.testing.assert_close(fused.features(x), net.features(x), rtol=1e-12, atol=1e-12)
    assert not fused.training


def test_a_conv_and_norm_in_the_root_keep_the_root_callable_by_part(
    net: Net, x: torch.Tensor
) -> None:
    """``stem`` and ``stem_norm`` are read by ``features``, which is not ``forward``."""
    fused = reparam.fuse(net)
    torch.testing.assert_close(
        fused.stem_norm(fused.stem(x)), net.stem_norm(net.stem(x)), rtol=1e-12, atol=1e-12
    )


def test_double_fusing_is_fusing(net: nn.Module, x: torch.Tensor) -> None:
    once = reparam.fuse(net)
    plan = reparam.plan(once)
    assert plan.regions == ()
    twice = plan.apply()
    assert list(twice.state_dict()) == list(once.state_dict())
    assert torch.equal(twice(x), once(x))


def test_deepcopy(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    assert torch.equal(copy.deepcopy(fused)(x), fused(x))


def test_pickle(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    assert torch.equal(pickle.loads(pickle.dumps(fused))(x), fused(x))  # noqa: S301 (own bytes)


def test_torch_save_of_the_whole_module(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    buffer = io.BytesIO()
    torch.save(fused, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), fused(x))


def test_state_dict_round_trip(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    buffer = io.BytesIO()
    torch.save(fused.state_dict(), buffer)
    buffer.seek(0)
    other = reparam.fuse(randomise(Net().double(), seed=5))
    assert not torch.equal(other(x), fused(x))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), fused(x))


def test_torch_export(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    program = torch.export.export(fused, (x,))
    torch.testing.assert_close(program.module()(x), fused(x), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_jit_trace(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    traced = torch.jit.trace(fused, x)
    torch.testing.assert_close(traced(x), fused(x), rtol=1e-12, atol=1e-12)


def test_the_result_can_be_trained_and_moved(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    fused(x).sum().backward()
    assert all(p.grad is not None for p in fused.parameters())
    assert fused.float()(x.float()).dtype == torch.float32
    assert fused.to("meta")(x.float().to("meta")).shape == (2, 5)


def test_grad_mode_does_not_matter(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    with torch.inference_mode():
        inferred = reparam.fuse(net)
        assert torch.equal(inferred(x), fused(x))
    with torch.no_grad():
        other = reparam.fuse(net)
    assert torch.equal(other(x), fused(x))
    other(x).sum().backward()


def test_the_random_state_is_left_alone(net: nn.Module, x: torch.Tensor) -> None:
    state = torch.get_rng_state()
    reparam.fuse(net, x)
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------- the plan


def test_the_plan_reads_for_a_person(net: Net) -> None:
    net.stem_norm = nn.BatchNorm2d(4, track_running_stats=False).double().eval()
    plan = reparam.plan(net)
    text = plan.text(100, every=True)
    assert max(map(len, text.splitlines())) <= 100
    assert max(map(len, str(plan).splitlines())) <= 80
    assert len(plan.regions) == 2
    assert all(r.where in text for r in plan.regions)
    assert all(r.why.split()[0] in text for r in plan.refusals)
    assert all(r.where and r.what and r.why for r in plan.refusals)


def test_verify_tells_equal_from_different(net: nn.Module, x: torch.Tensor) -> None:
    fused = reparam.fuse(net)
    verdict = reparam.verify(net, fused, x)
    assert verdict.ok
    assert verdict.max_abs <= 1e-12
    verdict.raise_if_different()
    with torch.no_grad():
        next(fused.parameters()).view(-1)[0] += 1e-3
    verdict = reparam.verify(net, fused, x)
    assert not verdict.ok
    with pytest.raises(VerificationError):
        verdict.raise_if_different()


TAKE_NUMBERS = {
    "pow": lambda x: torch.pow(x, 2),
    "remainder": lambda x: torch.remainder(x, 2),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "float_power": lambda x: torch.float_power(x, 2),
    "bitwise_and": lambda x: torch.bitwise_and(x > 0, True),
    "isin": lambda x: torch.isin(x.round(), 2),
    "full": lambda x: torch.full((2,), x.mean()),
    "an instance": lambda x: x * 2 if isinstance(x, torch.Tensor | float) else x,
}


@pytest.mark.parametrize("name", TAKE_NUMBERS)
def test_functions_that_take_numbers_or_tensors_are_traced(name):
    net = Lambda(lambda self, x: TAKE_NUMBERS[name](self.b(self.a(x))), conv(), norm())
    net = randomise(net.double()).eval()
    fused = reparam.fuse(net, image())
    assert isinstance(fused.b, nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(fused(image()), net(image()), rtol=1e-10, atol=1e-12)


_COLLECTED: list[Tensor] = []


class CollectsByHooks(nn.Module):
    """Installs a hook on a part when it first runs, and returns what that has collected."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
        self.installed = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.installed:
            self.part.register_forward_hook(lambda _m, _a, out: _COLLECTED.append(out))
            self.installed = True
        _COLLECTED.clear()
        y = self.head(self.part(x))
        return y, _COLLECTED[0]


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_model_that_needs_its_own_hooks_is_read_with_them(ran_before: bool) -> None:  # noqa: FBT001
    net = randomise(CollectsByHooks().double()).eval()
    x = torch.randn(2, 3, 8, 8).double()
    if ran_before:
        net(x)
    fused = reparam.fuse(net, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    for got, expected in zip(fused(x), net(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class Picks(nn.Module):
    """Picks between equal scores, as detectors do before they are trained: rounding decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.register_buffer("table", torch.tensor([0.0, torch.inf]))

    def forward(self, x):
        y = self.norm(self.conv(x))
        score = y.sum((1, 2, 3))
        return y, self.table[(score + 0.0 > score).long()]


def test_a_net_whose_rounding_picks_its_results_folds_and_a_wrong_one_is_found():
    net, x = randomise(Picks()).eval(), torch.randn(2, 3, 8, 8)
    net.table.copy_(torch.tensor([0.0, torch.inf]))
    fused = reparam.fuse(net, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(x)[0], net(x)[0], rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        fused.conv.weight[0] *= 1.1
    with pytest.raises(VerificationError):
        compare_models("it", net, fused, ((x,), {}))
