"""From layers to operators and back: the same arguments, the same numbers, the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from reparam import algebra
from reparam.algebra import AffineConv, flat_pads, layer_arguments, lower

from .operators import after, inputs_for, operators, same_map, whole_numbers

# PyTorch's advice on speed for padding='same' with an even kernel.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

CONVS = (F.linear, F.conv1d, F.conv2d, F.conv3d)


@st.composite
def layers(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:
    """Weight, bias and arguments of a convolution of the framework."""
    dims = draw(st.integers(1, 3))
    size = tuple(draw(st.sampled_from([3, 1, 2, 5])) for _ in range(dims))
    groups = draw(st.sampled_from([1, 2, 4]))
    weight = whole_numbers(4, 4 // groups, *size)
    bias = draw(st.sampled_from([None, whole_numbers(4)]))
    # The dilation of a kernel of one tap says nothing, so it is not expected back.
    dilation = tuple(1 if k == 1 else draw(st.integers(1, 3)) for k in size)
    if draw(st.sampled_from([False, False, True])):
        stride, padding = (1,) * dims, "same"
    else:
        stride = tuple(draw(st.integers(1, 3)) for _ in range(dims))
        # Up to more than the kernel: an output that is bias alone.
        padding = tuple(draw(st.integers(0, 4)) for _ in range(dims))
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return weight, bias, arguments


@given(drawn=layers())
def test_a_layer_comes_back_as_it_went_in(drawn: Any) -> None:
    weight, bias, arguments = drawn
    op = algebra.conv(weight, bias, **arguments)
    found, kernel, shift = lower(op)
    assert found.pre_pad is None
    assert (found.stride, found.dilation, found.groups) == (
        arguments["stride"],
        arguments["dilation"],
        arguments["groups"],
    )
    assert _pads(found.padding, weight, arguments) == _pads(arguments["padding"], weight, arguments)
    assert torch.equal(kernel, weight)
    assert (shift is None) == (bias is None)
    assert shift is None or bias is None or torch.equal(shift, bias)
    for x in inputs_for(op):
        expected = CONVS[found.dims](x, weight, bias, **arguments)
        assert torch.equal(found(x, kernel, shift), expected)
        assert torch.equal(op(x), expected)


def _pads(padding: Any, weight: torch.Tensor, arguments: dict[str, Any]) -> list[tuple[int, int]]:
    """What the framework pads, from its documentation."""
    if padding != "same":
        return [(p, p) for p in padding]
    totals = [d * (k - 1) for d, k in zip(arguments["dilation"], weight.shape[2:], strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


@given(op=operators())
def test_a_lowered_operator_is_the_operator(op: AffineConv) -> None:
    """Any offsets: unequal gaps, off-centre, padding beyond the kernel, negative padding."""
    arguments, weight, bias = lower(op)
    assert tuple(weight.shape) == layer_arguments(op.geometry)[1].kernel_shape
    assert arguments.dims == op.geometry.dims
    for x in inputs_for(op):
        assert torch.equal(arguments(x, weight, bias), op(x))
        assert torch.equal(arguments.on(x)(weight, bias), op(x))
    if op.geometry.dims:
        again = algebra.conv(
            weight,
            bias,
            stride=arguments.stride,
            padding=arguments.pre_pad or arguments.padding,
            dilation=arguments.dilation,
            groups=arguments.groups,
        )
        assert again.geometry == layer_arguments(op.geometry)[1]
        assert same_map(again, op)


@given(data=st.data(), inner=operators())
def test_lowering_respects_both_operations(data: st.DataObject, inner: AffineConv) -> None:
    """The layer of a composition is the layers one after the other."""
    outer = data.draw(after(inner))
    first, second, both = lower(inner), lower(outer), lower(outer @ inner)
    for x in inputs_for(inner, outer):
        middle = first[0](x, *first[1:])
        assert torch.equal(both[0](x, *both[1:]), second[0](middle, *second[1:]))


@given(op=operators(dims=0))
def test_without_dimensions_it_is_a_linear_layer(op: AffineConv) -> None:
    arguments, weight, bias = lower(op)
    assert arguments.groups == 1
    assert arguments.dims == 0
    x = whole_numbers(5, op.geometry.in_channels)
    assert torch.equal(F.linear(x, weight, bias), op(x))


@pytest.mark.parametrize(
    ("op", "padding", "pre_pad", "dilation", "size"),
    [
        pytest.param(
            algebra.conv(torch.ones(1, 1, 3), padding=((1, 2),)), (0,), ((1, 2),), (1,), (3,),
            id="unequal padding is added before",
        ),
        pytest.param(
            algebra.conv(torch.ones(1, 1, 4), padding="same"), "same", None, (1,), (4,),
            id="an even kernel keeps 'same'",
        ),
        pytest.param(
            algebra.conv(torch.ones(1, 1, 4), padding=((2, 1),)), (0,), ((2, 1),), (1,), (4,),
            id="the odd zero on the other side is not 'same'",
        ),
        pytest.param(
            algebra.conv(torch.ones(1, 1, 4), padding=((1, 2),), stride=2), (0,), ((1, 2),), (1,),
            (4,), id="no 'same' with a stride",
        ),
        pytest.param(
            algebra.conv(torch.ones(1, 1, 2), dilation=2)
            + algebra.conv(torch.ones(1, 1, 1), padding=((0, -2),)),
            (0,), None, (2,), (2,), id="offsets of one dilation share it",
        ),
        pytest.param(
            algebra.conv(torch.ones(1, 1, 3), dilation=2, padding=2)
            + algebra.conv(torch.ones(1, 1, 3), padding=1),
            (2,), None, (1,), (5,), id="offsets of two dilations are filled up",
        ),
        pytest.param(
            algebra.conv(torch.ones(1, 1, 1), padding=((-1, -1),)), (0,), None, (1,), (3,),
            id="a crop becomes taps of zeros",
        ),
        pytest.param(
            algebra.conv(torch.ones(1, 1, 1, 1), padding=((2, 2), (0, 1))), (0, 0),
            ((2, 2), (0, 1)), (1, 1), (1, 1), id="one unequal dimension takes the other along",
        ),
    ],
)  # fmt: skip
def test_the_cheapest_layer(
    op: AffineConv, padding: Any, pre_pad: Any, dilation: Any, size: Any
) -> None:
    arguments, weight, bias = lower(op)
    assert arguments.padding == padding
    assert arguments.pre_pad == pre_pad
    assert arguments.dilation == dilation
    assert arguments.kernel_size == size
    for x in inputs_for(op):
        assert torch.equal(arguments(x, weight, bias), op(x))


def test_pads_are_written_in_the_order_of_the_framework() -> None:
    assert flat_pads(((1, 2), (3, 4))) == [3, 4, 1, 2]
    x = torch.zeros(1, 1, 5, 5)
    assert F.pad(x, flat_pads(((1, 2), (3, 4)))).shape[2:] == (8, 12)
