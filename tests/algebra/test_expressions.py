"""Expressions computed a slice of output channels at a time are what they are as a whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.algebra import (
    AffineConv,
    Composition,
    Expression,
    Geometry,
    Leaf,
    Sum,
    evaluate,
    prepared,
    rerouted,
)

from .operators import beside, operators, whole_numbers, with_numbers


def leaf(op: AffineConv) -> Leaf:
    """Load a fresh copy each time, as a leaf that reads a float32 weight does."""

    def load(rows: tuple[int, int] | None) -> AffineConv:
        fresh = AffineConv(op.geometry, op.kernel.clone(), op.bias)
        return fresh if rows is None else fresh.rows(*rows)

    return Leaf(op.geometry, load)


def per_channel(channels: int, dims: int, *, bias: bool) -> AffineConv:
    return with_numbers(
        Geometry.pointwise(channels, channels, dims=dims, groups=channels, bias=bias)
    )


@st.composite
def branches(draw: st.DrawFn) -> Expression:
    """BN(conv) + BN(conv) + BN, some branches left out, nested or not: a training-time block."""
    dims, width = draw(st.sampled_from([1, 2])), draw(st.sampled_from([2, 4, 6]))
    known = draw(operators(dims=dims, cin=width, cout=width))
    size = Geometry.pointwise(width, width, dims=dims)
    first = with_numbers(
        Geometry(width, width, known.geometry.groups, known.geometry.offsets, size.stride,
                 size.extent, bias=draw(st.booleans()))
    )  # fmt: skip
    terms: list[Expression] = []
    for op in (first, draw(beside(first))):
        norm = per_channel(width, dims, bias=draw(st.booleans()))
        terms.append(Composition.of(leaf(norm), leaf(op)) if draw(st.booleans()) else leaf(op))
    inner = Sum.of(tuple(terms))
    skip = leaf(per_channel(width, draw(st.sampled_from([0, dims])), bias=draw(st.booleans())))
    return draw(st.sampled_from([Sum.of((inner, skip)), Sum.of((*terms, skip)), inner]))


@given(expression=branches(), whether_prepared=st.booleans(), grad=st.booleans())
def test_slices_are_rows_of_the_whole(
    *, expression: Expression, whether_prepared: bool, grad: bool
) -> None:
    with torch.set_grad_enabled(grad):
        whole = evaluate(expression)
        sliced = prepared(expression) if whether_prepared else expression
        for start, stop in ((0, 1), (1, whole.geometry.out_channels)):
            part = evaluate(sliced, (start, stop))
            expected = whole.rows(start, stop)
            assert part.isclose(expected, rtol=0)


@given(st.sampled_from([1, 2]))
def test_a_leaf_that_somebody_holds_is_not_changed(dims: int) -> None:
    """In-place addition is only for kernels that the evaluation itself made."""
    held = with_numbers(Geometry.pointwise(3, 3, dims=dims))
    before = held.kernel.clone()
    constant = Leaf(held.geometry, lambda rows: held if rows is None else held.rows(*rows))
    skip = leaf(per_channel(3, dims, bias=True))
    with torch.no_grad():
        for rows in (None, (0, 2)):
            evaluate(Sum.of((constant, skip)), rows)
    assert torch.equal(held.kernel, before)


def test_a_per_channel_branch_goes_to_its_own_rows() -> None:
    """A wrong diagonal is noticed: row ``r`` of a slice from ``start`` is input ``start + r``."""
    op = AffineConv(Geometry.pointwise(4, 2, dims=2), torch.zeros(2, 4, 1, 1))
    diagonal = per_channel(4, 2, bias=False)
    added = op.absorb_channels(diagonal, (2, 4)).kernel.flatten(1)
    numbers = diagonal.kernel.flatten()
    assert added.tolist() == [[0, 0, numbers[2], 0], [0, 0, 0, numbers[3]]]


def test_a_per_channel_branch_has_to_fit() -> None:
    op = AffineConv(
        Geometry(2, 2, offsets=((0,),), stride=(2,), extent=(-1,)), whole_numbers(2, 2, 1)
    )
    with pytest.raises(Exception, match="stride"):
        op.absorb_channels(per_channel(2, 1, bias=False), (0, 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shift", [1.0, 0.0, -0.5])
def test_a_rerouted_operator_acts_on_each_channel_as_the_one_it_is_taken_from(
    *, bias: bool, shift: float
) -> None:
    """By action and by kernel: channels repeated, left out, and left as they are."""
    op, channels = per_channel(3, 0, bias=bias), (2, 0, None, 2, None)
    made = evaluate(rerouted(leaf(op), channels, shift=shift))
    x = whole_numbers(2, 5)
    scale = op.kernel.flatten()
    added = torch.zeros(3, dtype=torch.float64) if op.bias is None else op.bias
    for k, channel in enumerate(channels):
        wanted = x[:, k] if channel is None else scale[channel] * x[:, k] + shift * added[channel]
        assert torch.equal(made(x)[:, k], wanted)
        assert made.kernel.flatten()[k] == (1 if channel is None else scale[channel])
    assert made.geometry.is_diagonal
    assert (made.bias is not None) == (bias and shift != 0)
    perturbed = torch.where(torch.arange(5) == 1, made.kernel.flatten() + 1, made.kernel.flatten())
    assert not torch.equal(perturbed * x, made(x) - (0 if made.bias is None else made.bias))
