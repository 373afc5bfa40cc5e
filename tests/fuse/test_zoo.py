"""Every block of the zoo folds to the fewest operators, exactly, whatever its type and input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reparam
from checking import Snapshot, assert_no_dearer, assert_same_function, worst_error
from counting import count
from zoo import CASES, ZooCase

TOLERANCE = 1e-12
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def _cases(*, reach: bool = False, **flags: bool) -> list[object]:
    """Make pytest parameters of the cases with these flags.

    Tests of how far a fold reaches are expected to fail for pending cases; being right never waits.
    """
    return [
        pytest.param(case, id=case.name, marks=_waits(case) if reach and case.pending else ())
        for case in CASES
        if all(getattr(case, flag) == value for flag, value in flags.items())
    ]


def _waits(case: ZooCase) -> pytest.MarkDecorator:
    return pytest.mark.xfail(reason=f"waits for {case.pending}", strict=True)


def _fused(case: ZooCase, model: nn.Module) -> nn.Module:
    dtype = next(model.parameters()).dtype
    return reparam.fuse(model, case.inputs().to(dtype), probe=case.probe and not case.pending)


@pytest.mark.parametrize("case", _cases(reach=True))
def test_reaches_the_fewest_operators(case: ZooCase) -> None:
    _, tally = count(_fused(case, case.module()), case.inputs())
    assert (tally.convs, tally.linears, tally.norms) == (case.convs, case.linears, case.norms)
    assert set(tally.others) <= case.others, f"arithmetic is left over: {dict(tally.others)}"


@pytest.mark.parametrize("case", _cases())
def test_is_the_same_function(case: ZooCase) -> None:
    model = case.module(seed=1)
    before = Snapshot.of(model)
    fused = _fused(case, model)
    for x in (case.inputs(), case.other_inputs()):
        assert_same_function(model, fused, x, tolerance=TOLERANCE)
        assert_no_dearer(model, fused, x)
    before.assert_unchanged(model)
    assert reparam.verify(model, fused, case.other_inputs()).ok


@pytest.mark.parametrize("case", _cases(probe=False))
def test_a_perturbed_kernel_is_noticed(case: ZooCase) -> None:
    """The two checks above can fail: one weight off by 1e-9 is enough."""
    model = case.module()
    fused = _fused(case, model)
    weight = next(p for p in fused.parameters() if p.ndim > 1)
    with torch.no_grad():
        largest = weight.abs().argmax()
        weight.view(-1)[largest] *= 1 + 1e-9
    with pytest.raises(AssertionError, match="differ"):
        assert_same_function(model, fused, case.inputs(), tolerance=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", _cases())
def test_keeps_the_type(case: ZooCase, dtype: torch.dtype) -> None:
    """A fused weight is rounded once, so its output is as near as the type allows.

    Every rounding (input, weight, output of each of a few operators) moves a value by at most half
    an epsilon of the largest activation; eight epsilons cover the longest block of the zoo.
    """
    model = case.module().to(dtype)
    fused = _fused(case, model)
    kept = {p.dtype for p in fused.parameters()} | {b.dtype for b in fused.buffers()}
    assert kept - {torch.int64} <= {dtype}
    x = case.inputs().to(dtype)
    reference, _ = count(model.double(), x.double())
    _, tally = count(model, x.double())
    actual = fused(x)
    pairs = zip(_tuple(reference), _tuple(actual), strict=True)
    for expected, found in pairs:
        assert found.dtype == dtype
        error = (found.double() - expected).abs().max().item() / tally.scale
        assert error <= 8 * torch.finfo(dtype).eps, f"{error:.3g} of the activations' scale"


def _tuple(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("case", _cases(reach=True, affine=True, probe=False))
def test_operator_acts_like_the_block(case: ZooCase) -> None:
    model, x = case.module(), case.inputs()
    op = reparam.operator(model)
    error = (op(x) - model(x)).abs().max().item()
    _, tally = count(model, x)
    assert error <= TOLERANCE * tally.scale


@pytest.mark.parametrize("case", _cases(reach=True, affine=True, probe=False))
def test_operator_is_differentiable(case: ZooCase) -> None:
    """The gradient through the equivalent kernel is the gradient through the block."""
    model, x = case.module(), case.inputs()
    towards = torch.randn(model(x).shape, dtype=torch.float64)
    leaves = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad((model(x) * towards).sum(), leaves, allow_unused=True)
    op = reparam.operator(model)
    assert op.kernel.requires_grad
    actual = torch.autograd.grad((op(x) * towards).sum(), leaves, allow_unused=True)
    scale = max(float(g.abs().max()) for g in expected if g is not None)
    for ours, theirs in zip(actual, expected, strict=True):
        left, right = (torch.zeros(()) if g is None else g for g in (ours, theirs))
        assert float((left - right).abs().max()) <= 1e-11 * scale


@pytest.mark.parametrize("case", _cases())
def test_the_default_precision_error_is_rounding(case: ZooCase) -> None:
    """In float32 the fused block is no further from the truth than a few roundings."""
    model = case.module()
    single = case.module().float()
    fused = _fused(case, single)
    error, _, _ = worst_error(model.float(), fused, case.inputs().float())
    assert error <= 16 * torch.finfo(torch.float32).eps
