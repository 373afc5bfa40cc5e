"""The laws of ``+`` and ``@``, by action (what comes out for an input) and by kernel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from reparam import algebra
from reparam.algebra import AffineConv, Geometry

from .operators import (
    after,
    before,
    beside,
    by_definition,
    defined,
    doubled_taps,
    inputs_for,
    operators,
    same_map,
    whole_numbers,
    with_numbers,
)

# ------------------------------------------------------------------------------ the definition


@settings(max_examples=60)
@given(op=operators())
def test_an_operator_acts_by_its_definition(op: AffineConv) -> None:
    for x in inputs_for(op):
        torch.testing.assert_close(op(x), by_definition(op, x), rtol=0, atol=0)


@given(op=operators())
def test_the_output_has_the_size_that_the_geometry_states(op: AffineConv) -> None:
    for x in inputs_for(op):
        if op.geometry.dims:
            assert tuple(op(x).shape[2:]) == op.geometry.output_size(tuple(x.shape[2:]))


# ------------------------------------------------------------------------------ parallel branches


@given(data=st.data(), a=operators())
def test_a_sum_acts_as_its_branches(data: st.DataObject, a: AffineConv) -> None:
    b = data.draw(beside(a))
    for x in inputs_for(a):
        assert torch.equal((a + b)(x), a(x) + b(x))
        assert torch.equal((a - b)(x), a(x) - b(x))


@given(data=st.data(), a=operators())
def test_addition_commutes(data: st.DataObject, a: AffineConv) -> None:
    b = data.draw(beside(a))
    assert (a + b).geometry == (b + a).geometry
    assert same_map(a + b, b + a)


@given(data=st.data(), a=operators())
def test_addition_associates(data: st.DataObject, a: AffineConv) -> None:
    b, c = data.draw(beside(a)), data.draw(beside(a))
    left, right = (a + b) + c, a + (b + c)
    assert left.geometry == right.geometry
    assert same_map(left, right)
    for x in inputs_for(a):
        assert torch.equal(left(x), a(x) + b(x) + c(x))


@given(a=operators())
def test_an_operator_less_itself_is_zero(a: AffineConv) -> None:
    zero = a - a
    assert torch.count_nonzero(zero.kernel) == 0
    assert zero.bias is None or torch.count_nonzero(zero.bias) == 0
    assert same_map(a + zero, a)


# ------------------------------------------------------------------------------ one after another


@given(data=st.data(), inner=operators())
def test_a_composition_acts_as_one_after_the_other(data: st.DataObject, inner: AffineConv) -> None:
    outer = data.draw(after(inner))
    both = outer @ inner
    for x in inputs_for(inner, outer):
        assert torch.equal(both(x), outer(inner(x)))


@given(data=st.data(), outer=operators())
def test_padding_is_composed_where_it_is_exact(data: st.DataObject, outer: AffineConv) -> None:
    inner = data.draw(before(outer))
    both = outer @ inner
    for x in inputs_for(inner, outer):
        assert torch.equal(both(x), outer(inner(x)))


@given(data=st.data(), a=operators())
def test_composition_associates(data: st.DataObject, a: AffineConv) -> None:
    b = data.draw(after(a))
    c = data.draw(after(b))
    right = defined(lambda: c @ (b @ a))
    left = defined(lambda: (c @ b) @ a)
    assume(left is not None and right is not None)
    assert left is not None
    assert right is not None
    assert left.geometry == right.geometry
    assert same_map(left, right)
    for x in inputs_for(a, b, c):
        assert torch.equal(left(x), c(b(a(x))))


def test_a_crop_can_make_an_inner_pair_exact() -> None:
    """Both ways to set the brackets are equal where both are defined; one may be refused."""
    first = with_numbers(Geometry.pointwise(2, 2, dims=1, bias=True))
    padded = algebra.conv(whole_numbers(2, 2, 3), padding=1)
    crop = algebra.zero_pad(2, ((-1, -1),))
    assert defined(lambda: padded @ first) is None
    both = (crop @ padded) @ first
    for x in inputs_for(first, padded, crop):
        assert torch.equal(both(x), crop(padded(first(x))))


# ------------------------------------------------------------------------------ distributivity


@given(data=st.data(), inner=operators())
def test_composition_distributes_from_the_right(data: st.DataObject, inner: AffineConv) -> None:
    a = data.draw(after(inner))
    b = data.draw(beside(a))
    parts = defined(lambda: a @ inner + b @ inner)
    whole = defined(lambda: (a + b) @ inner)
    assert (parts is None) == (whole is None)
    if parts is not None and whole is not None:
        assert whole.geometry == parts.geometry
        assert same_map(whole, parts)
        for x in inputs_for(inner, a):
            assert torch.equal(whole(x), a(inner(x)) + b(inner(x)))


@given(data=st.data(), b=operators())
def test_composition_distributes_from_the_left(data: st.DataObject, b: AffineConv) -> None:
    c = data.draw(beside(b))
    a = data.draw(after(b))
    a = AffineConv(a.geometry, a.kernel)  # a constant would be added twice
    parts = defined(lambda: a @ b + a @ c)
    whole = defined(lambda: a @ (b + c))
    assert (parts is None) == (whole is None)
    if parts is not None and whole is not None:
        assert whole.geometry == parts.geometry
        assert same_map(whole, parts)
        for x in inputs_for(b, a):
            assert torch.equal(whole(x), a(b(x)) + a(c(x)))


# ------------------------------------------------------------------------------ identity, scaling


@given(a=operators())
def test_the_identity_is_neutral(a: AffineConv) -> None:
    geometry = a.geometry
    before_it = algebra.identity(geometry.in_channels, dims=geometry.dims)
    behind_it = algebra.identity(geometry.out_channels, dims=geometry.dims)
    assert same_map(a @ before_it, a)
    assert same_map(behind_it @ a, a)
    for x in inputs_for(a):
        assert torch.equal(before_it(x), x)


@given(a=operators(), factor=st.sampled_from([-2.0, 0.0, 1.0, 0.5]))
def test_scaling_scales_what_comes_out(a: AffineConv, factor: float) -> None:
    for x in inputs_for(a):
        assert torch.equal((factor * a)(x), factor * a(x))
        assert torch.equal((a * factor)(x), (factor * a)(x))
    assert same_map(-a, -1.0 * a)
    by_composition = algebra.scale(
        torch.full((a.geometry.out_channels,), factor), dims=a.geometry.dims
    )
    assert same_map(by_composition @ a, factor * a)


@given(data=st.data(), inner=operators())
def test_scaling_passes_through_composition(data: st.DataObject, inner: AffineConv) -> None:
    outer = data.draw(after(inner))
    linear_part = AffineConv(outer.geometry, outer.kernel)
    assert same_map(linear_part @ (3.0 * inner), 3.0 * (linear_part @ inner))


@given(data=st.data(), dims=st.integers(0, 3), channels=st.sampled_from([1, 2, 4]))
def test_diagonal_operators_commute(data: st.DataObject, dims: int, channels: int) -> None:
    a, b = (algebra.scale(whole_numbers(channels), dims=dims) for _ in range(2))
    assert same_map(a @ b, b @ a)
    op = data.draw(operators(dims=dims, cin=channels, cout=channels))
    if op.geometry.is_diagonal and op.bias is None:
        assert same_map(a @ op, op @ a)


# ------------------------------------------------------------------------------ homomorphisms


@given(data=st.data(), a=operators())
def test_regrouping_respects_both_operations(data: st.DataObject, a: AffineConv) -> None:
    b, outer = data.draw(beside(a)), data.draw(after(a))
    assert same_map((a + b).regroup(1), a.regroup(1) + b.regroup(1))
    assert same_map((outer @ a).regroup(1), outer.regroup(1) @ a.regroup(1))
    for groups in range(1, a.geometry.groups + 1):
        if a.geometry.groups % groups == 0:
            fewer = a.regroup(groups)
            assert fewer.geometry.groups == groups
            for x in inputs_for(a):
                assert torch.equal(fewer(x), a(x))


@given(data=st.data(), dims=st.integers(1, 3), a=operators(dims=0))
def test_more_dimensions_respect_both_operations(
    data: st.DataObject, dims: int, a: AffineConv
) -> None:
    b, outer = data.draw(beside(a)), data.draw(after(a))
    assert same_map((a + b).in_dims(dims), a.in_dims(dims) + b.in_dims(dims))
    assert same_map((outer @ a).in_dims(dims), outer.in_dims(dims) @ a.in_dims(dims))
    assert same_map(a.in_dims(dims).in_dims(0), a)
    x = whole_numbers(2, a.geometry.in_channels, *(2, 3, 2)[:dims])
    assert torch.equal(a.in_dims(dims)(x), a(x.movedim(1, -1)).movedim(-1, 1))


@given(data=st.data(), a=operators())
def test_taps_of_zeros_respect_both_operations(data: st.DataObject, a: AffineConv) -> None:
    b, outer = data.draw(beside(a)), data.draw(after(a))
    wide = doubled_taps(a)
    assert same_map(wide, a)
    assert same_map(wide + b, a + b)
    composed = defined(lambda: outer @ wide)
    if composed is not None:
        assert same_map(composed, outer @ a)
    for x in inputs_for(a):
        assert torch.equal(wide(x), a(x))


# ------------------------------------------------------------------------------ values


@given(a=operators())
def test_operators_are_immutable_and_keep_their_numbers(a: AffineConv) -> None:
    kernel = a.kernel.clone()
    _ = (a + a, -a, a.trim(), a.split_groups(), a.regroup(1), doubled_taps(a))
    assert torch.equal(a.kernel, kernel)
    with pytest.raises(AttributeError):
        a.kernel = kernel  # type: ignore[misc]


@given(data=st.data(), a=operators())
def test_nearby_is_not_equal(data: st.DataObject, a: AffineConv) -> None:
    """The comparison notices one number that is off by little."""
    assume(a.kernel.abs().max() > 0)
    flat = a.kernel.flatten().clone()
    flat[data.draw(st.integers(0, flat.numel() - 1))] += 1e-9 * float(a.kernel.abs().max())
    near = AffineConv(a.geometry, flat.view_as(a.kernel), a.bias)
    assert not a.isclose(near)
    assert a.isclose(near, rtol=1e-8)
    assert not a.isclose(AffineConv(a.geometry, a.kernel, whole_numbers(len(a.kernel)) + 9.5))


@example(dtype=torch.bfloat16)
@given(dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]))
def test_arithmetic_is_float64(dtype: torch.dtype) -> None:
    op = algebra.conv(torch.randn(2, 2, 3, dtype=dtype), torch.randn(2, dtype=dtype))
    assert op.kernel.dtype is torch.float64
    assert op.bias is not None
    assert op.bias.dtype is torch.float64
    assert op(torch.randn(1, 2, 5, dtype=dtype)).dtype is torch.float64


def test_other_operands_are_left_to_python() -> None:
    op = algebra.identity(2)
    with pytest.raises(TypeError):
        _ = op + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        _ = op @ 1  # type: ignore[operator]
