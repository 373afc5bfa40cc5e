"""branch: multi-branch blocks with the same function; kinds of one's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from branching_nets import CONVS, EXACT, F64, FITTING, GEOMETRIES, KINDS, OF_3X3, Net, X, difference
from reparam.branching import (
    BranchKind,
    BranchSum,
    ConvLayout,
    branch,
    kinds,
    plan_branching,
    register_kind,
)
from reparam.errors import InputError


@pytest.fixture
def net() -> Net:
    return Net().to(F64).eval()


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
