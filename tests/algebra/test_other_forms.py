"""Other ways to write the same map: fewer taps, more groups, some rows, a slice at a time."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reparam import algebra
from reparam.algebra import (
    AffineConv,
    Composition,
    Expression,
    Geometry,
    Leaf,
    Rows,
    Sum,
    constant_scale,
    evaluate,
    pad_leaf,
)
from reparam.errors import InexactError

from .operators import (
    after,
    beside,
    defined,
    doubled_taps,
    inputs_for,
    operators,
    same_map,
    whole_numbers,
    with_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

# ------------------------------------------------------------------------------ trim


@given(data=st.data(), op=operators())
def test_trimming_drops_the_taps_that_are_zero(data: st.DataObject, op: AffineConv) -> None:
    kernel = op.kernel.clone()
    for dim, line in enumerate(op.geometry.offsets):
        for k in range(len(line)):
            if data.draw(st.booleans()):
                kernel.select(dim + 2, k).zero_()
    zeroed = AffineConv(op.geometry, kernel, op.bias)
    trimmed = zeroed.trim()
    assert same_map(trimmed, zeroed)
    assert trimmed.geometry.extent == op.geometry.extent
    for dim, line in enumerate(trimmed.geometry.offsets):
        used = [bool(trimmed.kernel.select(dim + 2, k).any()) for k in range(len(line))]
        assert all(used) or len(line) == 1
    for x in inputs_for(op):
        assert torch.equal(trimmed(x), zeroed(x))


@given(op=operators())
def test_trimming_undoes_taps_of_zeros(op: AffineConv) -> None:
    assert doubled_taps(op).trim().geometry == op.trim().geometry


# ------------------------------------------------------------------------------ groups


@given(op=operators())
def test_groups_are_recovered_from_the_zeros_of_a_kernel(op: AffineConv) -> None:
    ones = AffineConv(op.geometry, torch.ones(op.geometry.kernel_shape), op.bias)
    found = ones.regroup(1).split_groups()
    assert found.geometry == op.geometry
    assert torch.equal(found.kernel, ones.kernel)


@given(op=operators(), share=st.sampled_from([0.0, 0.2, 0.9]))
def test_splitting_into_groups_keeps_the_map(op: AffineConv, share: float) -> None:
    kernel = op.kernel * (torch.rand_like(op.kernel) < share)
    sparse = AffineConv(op.geometry, kernel, op.bias)
    split = sparse.split_groups()
    assert split.geometry.groups % op.geometry.groups == 0
    assert same_map(split, sparse)
    for x in inputs_for(op):
        assert torch.equal(split(x), sparse(x))


# ------------------------------------------------------------------------------ rows


@given(data=st.data(), op=operators())
def test_rows_are_a_range_of_the_output_channels(data: st.DataObject, op: AffineConv) -> None:
    count = op.geometry.out_channels
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    part = op.rows(start, stop)
    assert part.geometry.groups == 1
    for x in inputs_for(op):
        whole = op(x)
        expected = whole[:, start:stop] if op.geometry.dims else whole[..., start:stop]
        assert torch.equal(part(x), expected)


# ------------------------------------------------------------------------------ expressions


def leaf(op: AffineConv) -> Leaf:
    def load(rows: Rows | None) -> AffineConv:
        return op if rows is None else op.rows(*rows)

    return Leaf(op.geometry, load)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[Expression, AffineConv]:
    """An expression, and the operator that it stands for, made without it."""
    op = draw(operators(dims=draw(st.sampled_from([0, 1, 2]))))
    expression: Expression = leaf(op)
    for _ in range(draw(st.integers(0, depth))):
        kind = draw(st.sampled_from(["after", "beside", "scale", "constant", "linear", "pad"]))
        width, dims = op.geometry.out_channels, op.geometry.dims
        if kind == "beside":
            other = draw(beside(op))
            expression, op = Sum.of((expression, leaf(other))), op + other
            continue
        if kind == "constant":
            shift = draw(st.sampled_from([None, 3.0]))
            shifts = None if shift is None else torch.full((width,), shift)
            last = algebra.scale(torch.full((width,), 2.0), shifts)
            made: Leaf = constant_scale(width, 2.0, shift=shift)
        elif kind == "pad":
            crop = ((0, -1),) * dims
            last, made = algebra.zero_pad(width, crop), pad_leaf(width, crop)
        else:
            if kind == "scale":
                last = algebra.scale(whole_numbers(width), whole_numbers(width))
            elif kind == "linear":
                last = with_numbers(Geometry.pointwise(width, 3, dims=0, bias=True))
            else:
                last = draw(after(op))
            made = leaf(last)
        expression, op = Composition.of(made, expression), last.in_dims(dims) @ op
    return expression, op


@given(drawn=expressions(), step=st.integers(1, 3))
def test_an_expression_is_evaluated_whole_or_by_slices(
    drawn: tuple[Expression, AffineConv], step: int
) -> None:
    expression, expected = drawn
    whole = evaluate(expression)
    assert whole.geometry == expression.geometry == expected.geometry
    assert same_map(whole, expected)
    count = whole.geometry.out_channels
    parts = [
        evaluate(expression, (start, min(start + step, count))) for start in range(0, count, step)
    ]
    kernel = torch.cat([part.kernel for part in parts])
    assert torch.equal(kernel, whole.regroup(1).kernel)
    if whole.bias is not None:
        assert torch.equal(torch.cat([p.bias for p in parts if p.bias is not None]), whole.bias)
    else:
        assert all(part.bias is None for part in parts)


def test_an_expression_refuses_when_it_is_made() -> None:
    """Before any number is read."""

    def unread(_: Rows | None) -> AffineConv:
        pytest.fail("the numbers were read")

    biased = Leaf(algebra.conv_geometry((2, 2, 1), bias=True), unread)
    padded = Leaf(algebra.conv_geometry((2, 2, 3), padding=1), unread)
    with pytest.raises(InexactError, match="a bias is seen through zero padding"):
        Composition.of(padded, biased)
    with pytest.raises(InexactError, match="branches differ in output extent"):
        Sum.of((biased, Leaf(algebra.conv_geometry((2, 2, 3)), unread)))
    assert Sum.of((padded,)) is padded


# ------------------------------------------------------------------------------ derivatives


def _with_gradients(*ops: AffineConv) -> list[Tensor]:
    tensors = [t for op in ops for t in (op.kernel, op.bias) if t is not None]
    return [t.clone().requires_grad_() for t in tensors]


def _rebuild(ops: tuple[AffineConv, ...], tensors: tuple[Tensor, ...]) -> list[AffineConv]:
    rest = iter(tensors)
    return [
        AffineConv(op.geometry, next(rest), next(rest) if op.bias is not None else None)
        for op in ops
    ]


@settings(max_examples=40)
@given(data=st.data(), inner=operators())
def test_both_operations_are_differentiable(data: st.DataObject, inner: AffineConv) -> None:
    outer = data.draw(after(inner))
    other = data.draw(beside(inner))
    ops = (inner, outer, other)
    assume(defined(lambda: outer @ (inner + other)) is not None)
    assume(sum(op.geometry.parameters for op in ops) < 150)

    def results(*tensors: Tensor) -> tuple[Tensor, ...]:
        a, b, c = _rebuild(ops, tensors)
        made = (b @ (a + c)) * 0.5
        return (made.kernel,) if made.bias is None else (made.kernel, made.bias)

    assert torch.autograd.gradcheck(results, _with_gradients(*ops), fast_mode=True)


@settings(max_examples=40)
@given(op=operators())
def test_other_forms_are_differentiable(op: AffineConv) -> None:
    forms = [
        lambda a: a.regroup(1),
        lambda a: a.split_groups(),
        lambda a: a.trim(),
        lambda a: a.rows(0, 1),
        doubled_taps,
    ]
    x = next(inputs_for(op))

    def results(*tensors: Tensor) -> tuple[Tensor, ...]:
        (again,) = _rebuild((op,), tensors)
        _, lowered, _ = algebra.lower(again)
        return (*(form(again).kernel for form in forms), lowered, again(x))

    # Zeros are where `trim` and `split_groups` decide; a small step must not change their minds.
    inputs = [torch.where(t == 0, 0.5, t).detach().requires_grad_() for t in _with_gradients(op)]
    assert torch.autograd.gradcheck(results, inputs, fast_mode=True)


def test_the_equivalent_kernel_trains() -> None:
    """The gradient through conv, BN and a sum of branches is that of the branches as modules."""
    weight = torch.randn(4, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    gamma = torch.randn(4, dtype=torch.float64, requires_grad=True)
    mean, var = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    norm = algebra.batch_norm(mean, var, gamma, eps=0.3, dims=2)
    op = norm @ algebra.conv(weight, padding=1) + algebra.identity(4, dims=2)
    ours = torch.autograd.grad(op(x).square().sum(), (weight, gamma))
    y = torch.nn.functional.conv2d(x, weight, padding=1)
    y = torch.nn.functional.batch_norm(y, mean, var, gamma, eps=0.3) + x
    theirs = torch.autograd.grad(y.square().sum(), (weight, gamma))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------ refused forms


def test_forms_that_do_not_exist_are_refused() -> None:
    op = algebra.conv(torch.ones(4, 2, 3), groups=2)
    with pytest.raises(InexactError, match=r"2 groups cannot be written as 4; needed a divisor"):
        op.regroup(4)
    with pytest.raises(InexactError, match=r"acts on 1 spatial dimensions, not on 2"):
        op.in_dims(2)


@pytest.mark.parametrize(("cin", "cout"), [*itertools.product([2, 4, 6], repeat=2)])
def test_every_divisor_is_a_way_to_group(cin: int, cout: int) -> None:
    for groups in range(1, math.gcd(cin, cout) + 1):
        if math.gcd(cin, cout) % groups == 0:
            op = with_numbers(Geometry.pointwise(cin, cout, dims=1, groups=groups))
            x = whole_numbers(1, cin, 3)
            assert torch.equal(op.regroup(1)(x), op(x))
