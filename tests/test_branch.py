"""branch: multi-branch blocks with the same function, and everything else as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from reparam.branching import (
    BranchKind,
    BranchSum,
    ConvLayout,
    branch,
    kinds,
    mobileone,
    plan_branching,
    register_kind,
)
from reparam.errors import InputError, UnsupportedModelError

F64 = torch.float64
EXACT = 1e-12
KINDS = kinds()
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "valid": {"kernel_size": 3},
    "wide-padding": {"kernel_size": 3, "padding": 3},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 4},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 3},
    "same-even": {"kernel_size": (4, 2), "padding": "same"},
    "patchify": {"kernel_size": 2, "stride": 2},
    "even-stride": {"kernel_size": 4, "stride": 2, "padding": 1},
    "anisotropic": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (2, 0)},
    "reflect": {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 2},
    "replicate-even": {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
    "large": {"kernel_size": (7, 6), "padding": 3, "stride": (1, 2)},
}


def fits(kind: str, geometry: str) -> bool:
    conv = nn.Conv2d(4, 4, **GEOMETRIES[geometry]).eval()
    return bool(plan_branching(conv, kind).regions)


FITTING = [(kind, geometry) for kind in KINDS for geometry in GEOMETRIES if fits(kind, geometry)]
OF_3X3 = [kind for kind in KINDS if fits(kind, "3x3")]


def difference(left: nn.Module, right: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return (left(x) - right(x)).abs().max().item()


@pytest.mark.parametrize("channels", [(4, 4), (4, 6)], ids=["equal", "widening"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("kind", "geometry"), FITTING)
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_the_function_is_the_same(kind, geometry, bias, channels) -> None:
    geometry = GEOMETRIES[geometry]
    if geometry.get("groups", 1) == channels[0] != channels[1]:
        channels = (4, 8)
    net = nn.Conv2d(*channels, bias=bias, **geometry).to(F64).eval()
    wide = branch(net, kind)
    assert isinstance(wide, BranchSum)
    assert len(wide.branches) > 1
    for size in ((11, 12), (8, 9)):
        assert difference(net, wide, torch.randn(2, 4, *size, dtype=F64)) <= EXACT


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    dims = draw(st.sampled_from([1, 2, 3]))
    groups = draw(st.sampled_from([1, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    size, dilation = each(1, 4), each(1, 2)
    same = draw(st.booleans())
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    return CONVS[dims - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        size,
        stride=1 if same else each(1, 3),
        padding="same" if same else each(0, 3),
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=F64,
    )


@settings(max_examples=120)
@given(conv=convolutions(), kind=st.sampled_from(KINDS))
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_the_function_is_the_same_for_any_geometry(conv: Any, kind: str) -> None:
    plan = plan_branching(conv, kind)
    if plan.refusals:
        return
    x = torch.randn(2, conv.in_channels, *(9,) * len(conv.kernel_size), dtype=F64)
    assert difference(conv, plan.apply().eval(), x) <= EXACT
    assert difference(conv, plan.apply(calibrate=x).eval(), x) <= EXACT


class Net(nn.Module):
    """Convolutions of several kinds, one of them used twice, with BN of random statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.again = nn.ModuleList([self.shared])
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Linear(8, 5)
        self.tag = "kept"
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
                module.eps = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.norm(self.pointwise(self.again[0](self.shared(x).relu()))).relu()
        return self.head(self.up(x).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    return Net().to(F64).eval()


X = (4, 3, 17, 16)


@pytest.mark.parametrize("kind", OF_3X3)
def test_a_net_keeps_its_function_class_and_keys(net: Net, kind: str) -> None:
    before = copy.deepcopy(net.state_dict())
    wide = branch(net, kind)
    assert difference(net, wide, torch.randn(X, dtype=F64)) <= EXACT
    assert type(wide) is Net
    assert wide.tag == "kept"
    assert not wide.training
    branched = [region.where for region in plan_branching(net, kind).regions]
    names = (*branched, *(["again.0"] if "shared" in branched else []))
    untouched = {key for key in before if not key.startswith(names)}
    assert untouched == {key for key in wide.state_dict() if not key.startswith(names)}
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_no_storage_is_shared(net: Net) -> None:
    def storages(module: nn.Module) -> set[int]:
        return {t.untyped_storage().data_ptr() for t in module.state_dict().values()}

    assert not storages(net) & storages(branch(net))


def test_a_convolution_used_twice_stays_one_block(net: Net) -> None:
    wide = branch(net, calibrate=torch.randn(X, dtype=F64))
    assert isinstance(wide.shared, BranchSum)
    assert wide.again[0] is wide.shared


def test_a_perturbed_branch_is_seen(net: Net) -> None:
    """The comparison of these tests can fail."""
    wide = branch(net)
    with torch.no_grad():
        wide.shared.branches["conv1x1"].conv.weight[0, 0] += 1e-6
    assert difference(net, wide, torch.randn(X, dtype=F64)) > 1e-9


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


# ------------------------------------------------------------------------------- the model around


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).to(dtype).eval()
    wide = branch(conv, "dbb")
    floats = {t.dtype for t in wide.state_dict().values() if t.is_floating_point()}
    assert floats == {dtype}
    x = torch.randn(2, 4, 7, 7, dtype=dtype)
    # Four branches are rounded and added; each rounds to about eps of the output's scale.
    bound = 16 * torch.finfo(dtype).eps * conv(x).abs().max().item()
    assert difference(conv, wide, x) <= bound


def test_hooks_attributes_modes_and_freezing_are_taken_over(net: Net) -> None:
    calls: list[str] = []
    net.shared.register_forward_hook(lambda *_: calls.append("after"))
    net.shared.register_forward_pre_hook(lambda *_: calls.append("before"))
    net.shared.label = "mine"
    net.shared.train().requires_grad_(False)
    wide = branch(net)
    assert wide.shared.label == "mine"
    assert wide.shared.training
    assert wide.shared.branches["conv3x3"].training
    assert not any(p.requires_grad for p in wide.shared.parameters())
    assert wide.shared.in_channels == 8
    assert wide.shared.padding == (1, 1)
    wide(torch.randn(X, dtype=F64))
    assert calls == ["before", "after"] * 2


@pytest.mark.parametrize("kind", OF_3X3)
def test_blocks_trace_and_every_branch_learns(kind: str) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).to(F64)
    wide = branch(conv, kind)
    x = torch.randn(3, 4, 8, 8, dtype=F64)
    traced = fx.symbolic_trace(copy.deepcopy(wide).eval())
    assert difference(traced, wide.eval(), x) == 0
    wide.train()(x).pow(3).sum().backward()
    for name, parameter in wide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_generator_repeats_and_leaves_the_global_one() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    state = torch.get_rng_state()
    one, two = (branch(conv, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = branch(conv, generator=torch.Generator().manual_seed(8))
    weights = (w.branches["conv1x1"].conv.weight for w in (one, other))
    assert not torch.equal(*weights)


def test_a_pruned_channel_can_still_learn() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).to(F64).eval()
    with torch.no_grad():
        conv.weight[1].zero_()
    wide = branch(conv)
    assert difference(conv, wide, torch.randn(2, 4, 8, 8, dtype=F64)) <= EXACT
    assert (wide.branches["conv1x1"].bn.weight > 0).all()
    nn.init.zeros_(conv.weight)
    assert difference(conv, branch(conv), torch.randn(2, 4, 8, 8, dtype=F64)) <= EXACT


def test_wrappers_are_opened() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    assert isinstance(branch(nn.DataParallel(conv)), BranchSum)
    assert isinstance(branch(torch.compile(conv)), BranchSum)


# ------------------------------------------------------------------------------ choice and refusal


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("shared", ["shared"]),
        ("stem", ["stem.0"]),
        (["stem.*", "shared"], ["stem.0", "shared"]),
        ("s*", ["stem.0", "shared"]),
        (lambda name, conv: name != "shared" and conv.kernel_size == (3, 3), ["stem.0"]),
    ],
    ids=["name", "container", "several", "glob", "predicate"],
)
def test_where_chooses(net: Net, where: Any, chosen: list[str]) -> None:
    plan = plan_branching(net, where=where)
    assert [region.where for region in plan.regions] == chosen
    wide = plan.apply()
    found = [name for name, m in wide.named_modules() if isinstance(m, BranchSum)]
    assert found == chosen


def test_a_misspelt_name_is_an_error_with_a_hint(net: Net) -> None:
    with pytest.raises(InputError, match="did you mean 'shared'"):
        branch(net, where="shard")


def test_refusals_say_where_and_why(net: Net) -> None:
    plan = plan_branching(net)
    assert [region.where for region in plan.regions] == ["stem.0", "shared"]
    assert plan.regions[1].branches == ("conv3x3", "conv1x1", "identity")
    assert plan.regions[0].branches == ("conv3x3", "conv1x1")
    assert {r.where: r.why.split(";")[0] for r in plan.refusals} == {
        "pointwise": "a 1x1 kernel has no smaller one to stand beside it",
        "up": "ConvTranspose2d is not a plain convolution (Conv1d, Conv2d, Conv3d)",
    }
    shown = str(plan)
    assert "stem.0  3x3 conv 3->8, stride 2, padding 1: conv3x3 + conv1x1" in shown
    assert "2 left alone" in shown


def _standardised() -> nn.Module:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    return Standardised(4, 4, 3)


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    net[1].weight = net[0].weight
    return net


def _not_finite() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = float("inf")
    return conv


def _state_hook() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3)
    conv.register_load_state_dict_post_hook(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("make", "kind", "why"),
    [
        (lambda: nn.Conv2d(4, 4, 1), "repvgg", "1x1 kernel"),
        (lambda: nn.Conv2d(4, 4, 1), "dbb", "1x1 kernel"),
        (lambda: nn.Conv2d(4, 4, (1, 3)), "acnet", "1x3 kernel has no cross"),
        (lambda: nn.Conv1d(4, 4, 3), "acnet", "no cross"),
        (lambda: nn.Conv2d(4, 8, 1), mobileone(1), "nothing beside it"),
        (lambda: nn.Linear(4, 4), "repvgg", "no convolution was chosen"),
        (lambda: nn.ConvTranspose2d(4, 4, 3), "repvgg", "not a plain convolution"),
        (_standardised, "repvgg", "a forward of its own"),
        (
            lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
            "repvgg",
            "parametrization",
        ),
        (lambda: nn.LazyConv2d(4, 3), "repvgg", "lazy"),
        (_tied, "repvgg", "0.weight, 1.weight are one parameter"),
        (_not_finite, "repvgg", "not finite"),
        (_state_hook, "repvgg", "state-dict hooks"),
        (lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64), "repvgg", "complex64"),
    ],
)
def test_nothing_to_branch_raises_with_the_reason(make: Callable[[], Any], kind, why: str) -> None:
    with pytest.raises(InputError, match=why):
        branch(make(), kind)


def test_what_cannot_be_read_or_used_is_refused() -> None:
    conv = nn.Conv2d(4, 4, 3)
    with pytest.raises(InputError, match="no kind of branching is named 'vgg'"):
        branch(conv, "vgg")
    with pytest.raises(InputError, match="calibrate is empty"):
        branch(conv, calibrate=[])
    with pytest.raises(InputError, match="at least one kxk"):
        mobileone(0)

    class NoCopy(nn.Sequential):
        def __deepcopy__(self, memo: object) -> NoCopy:
            raise TypeError("locked")

    with pytest.raises(UnsupportedModelError, match="NoCopy, cannot be copied: locked"):
        branch(NoCopy(conv))


# ----------------------------------------------------------------------------------- own kinds


def test_a_kind_of_ones_own() -> None:
    def corners(layout: ConvLayout) -> dict[str, nn.Module | None]:
        return {"corner": layout.window((0, 0), (2, 2)), "skip": layout.identity()}

    kind = BranchKind("corners", corners)
    conv = nn.Conv2d(4, 4, 3, padding=1, dilation=1).to(F64).eval()
    wide = branch(conv, kind)
    assert list(wide.branches) == ["conv3x3", "corner", "skip"]
    assert difference(conv, wide, torch.randn(2, 4, 9, 8, dtype=F64)) <= EXACT


def test_replk_puts_a_small_kernel_in_the_middle_of_a_large_one() -> None:
    wide = branch(nn.Conv2d(4, 4, 7, padding=3, groups=4).to(F64).eval(), "replk")
    assert list(wide.branches) == ["conv7x7", "conv5x5"]
    assert (wide.branches["conv5x5"].conv.padding, wide.branches["conv5x5"].conv.groups) == (
        (2, 2),
        4,
    )
    with pytest.raises(InputError, match="5x5 kernel is not larger"):
        branch(nn.Conv2d(4, 4, 5, padding=2).eval(), "replk")


def test_kinds_are_known_by_name() -> None:
    assert {"repvgg", "acnet", "dbb", "replk", "mobileone"} <= set(kinds())
    with pytest.raises(InputError, match="named 'dbb' exists"):
        register_kind(BranchKind("dbb", lambda _: {}))


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        (lambda _: {"relu": nn.ReLU()}, "not known to be an affine layer"),
        (lambda _: {"norm": nn.BatchNorm2d(4, track_running_stats=False)}, "running statistics"),
        (lambda _: {"wide": nn.Conv2d(4, 4, 5, padding=2)}, "within its taps"),
        (lambda _: {"dense": nn.Conv2d(4, 4, 1)}, "channel groups"),
    ],
)
def test_a_kind_that_is_wrong_is_an_error(branches: Any, message: str) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4 if message == "channel groups" else 1)
    with pytest.raises(InputError, match=message):
        branch(conv, BranchKind("wrong", branches))


def test_a_branch_without_batch_norm_is_allowed() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).to(F64).eval()
    kind = BranchKind("bare", lambda _: {"bare": nn.Conv2d(4, 4, 1).to(F64)})
    x = torch.randn(2, 4, 8, 8, dtype=F64)
    assert difference(conv, branch(conv, kind, calibrate=x), x) <= EXACT
