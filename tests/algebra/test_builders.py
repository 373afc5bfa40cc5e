"""Operators made from the numbers of a layer do what the layer does."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from reparam import algebra
from reparam.algebra import AffineConv, Geometry
from reparam.errors import InexactError

from .operators import whole_numbers

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    """Equal up to the rounding of a few dozen operations in float64."""
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, "same", "valid", 3])
@pytest.mark.parametrize(("groups", "bias"), [*itertools.product((1, 2, 4), (True, False))])
def test_a_convolution(dims: int, padding: int | str, groups: int, *, bias: bool) -> None:
    stride, dilation = (1, 2) if padding == "same" else (2, 2)
    layer = CONVS[dims](
        4, 8, (3, 2, 1)[:dims], stride, padding, dilation, groups, bias=bias, dtype=torch.float64
    )
    op = algebra.conv(
        layer.weight, layer.bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    x = torch.randn(2, 4, *(7, 6, 5)[:dims], dtype=torch.float64)
    close(op(x), layer(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_a_linear_layer(shape: tuple[int, ...], *, bias: bool) -> None:
    layer = nn.Linear(4, 3, bias=bias, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    close(algebra.linear(layer.weight, layer.bias)(x), layer(x))


@given(
    dims=st.integers(0, 3),
    eps=st.sampled_from([0.0, 1e-5, 1e-3, 0.7]),
    affine=st.booleans(),
)
def test_batch_norm(dims: int, eps: float, *, affine: bool) -> None:
    layer = NORMS[dims](5, eps=eps, affine=affine, dtype=torch.float64).eval()
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.1, 3.0)
        for parameter in layer.parameters():
            parameter.normal_()
    op = algebra.batch_norm(
        layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=eps, dims=dims
    )
    assert op.geometry.is_diagonal
    x = torch.randn(3, 5, *(4, 3, 2)[:dims], dtype=torch.float64)
    close(op(x), layer(x))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 1, 1), (3, 2, 1)])
def test_average_pooling(dims: int, size: int, stride: int, padding: int) -> None:
    layer = POOLS[dims](size, stride, padding)
    op = algebra.average_pool(3, (size,) * dims, (stride,) * dims, (padding,) * dims)
    x = torch.randn(2, 3, *(7, 8, 5)[:dims], dtype=torch.float64)
    close(op(x), layer(x))


@pytest.mark.parametrize("pads", [((1, 2),), ((0, 3), (-1, 2)), ((-2, -1), (1, 0), (2, 2))])
def test_zero_padding(pads: tuple[tuple[int, int], ...]) -> None:
    x = whole_numbers(2, 3, *(5, 6, 4)[: len(pads)])
    assert torch.equal(algebra.zero_pad(3, pads)(x), F.pad(x, algebra.flat_pads(pads)))


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_identity_and_scale(dims: int) -> None:
    x = whole_numbers(2, 3, *(5, 6, 4)[:dims])
    assert torch.equal(algebra.identity(3, dims=dims)(x), x)
    factor, shift = whole_numbers(3), whole_numbers(3)
    column = (1, 3, *(1,) * dims)
    expected = x * factor.view(column) + shift.view(column)
    assert torch.equal(algebra.scale(factor, shift, dims=dims)(x), expected)


# ------------------------------------------------------------------------------ refusals

TWO = torch.ones(2)


@pytest.mark.parametrize(
    ("var", "eps"), [([1.0, 0.0], 0.0), ([1.0, -1.0], 0.5), ([float("nan"), 1.0], 1e-5)]
)
def test_a_norm_without_a_scale_is_refused(var: list[float], eps: float) -> None:
    message = rf"smallest variance \+ eps is \S+ with eps={re.escape(f'{eps:g}')}; needed more than"
    with pytest.raises(InexactError, match=message):
        algebra.batch_norm(TWO, torch.tensor(var), eps=eps)


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(InexactError, match=r"complex64.*needed a real one"):
        algebra.conv(torch.ones(2, 2, 1, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: AffineConv(Geometry(2, 2), torch.ones(2, 3)),
            r"kernel has shape \(2, 3\), needed \(2, 2\)", id="kernel",
        ),
        pytest.param(
            lambda: algebra.linear(torch.ones(2, 2), torch.ones(3)),
            r"bias has shape \(3,\), needed \(2,\)", id="bias",
        ),
        pytest.param(
            lambda: Geometry(4, 6, groups=4),
            r"groups=4 must divide the 4 input and the 6 output channels", id="groups",
        ),
        pytest.param(lambda: Geometry(4, 4, groups=0), r"groups=0 must divide", id="no groups"),
        pytest.param(
            lambda: Geometry(1, 1, 1, ((0, 2, 1),), (1,), (0,)),
            r"offsets must be sorted, distinct and not empty; got \(\(0, 2, 1\),\)", id="order",
        ),
        pytest.param(
            lambda: Geometry(1, 1, 1, ((0, 0),), (1,), (0,)), r"distinct", id="repeated",
        ),
        pytest.param(lambda: Geometry(1, 1, 1, ((),), (1,), (0,)), r"not empty", id="empty"),
        pytest.param(
            lambda: Geometry(1, 1, 1, ((0,),), (1, 1), (0,)),
            r"one entry per dimension; got 1, 2 and 1", id="dimensions",
        ),
        pytest.param(
            lambda: algebra.conv(torch.ones(1, 1, 3, 3), stride=(1, 2, 3)),
            r"got 3 values \(1, 2, 3\), needed one or 2", id="stride",
        ),
        pytest.param(
            lambda: algebra.conv(torch.ones(1, 1, 3, 3), padding=(1, 2, 3)),
            r"got padding for 3 dimensions, needed 2", id="padding",
        ),
        pytest.param(
            lambda: algebra.conv(torch.ones(1, 1, 3), padding="full"),
            r"padding 'full' is not known; needed numbers, 'same' or 'valid'", id="padding mode",
        ),
    ],
)  # fmt: skip
def test_contradictions_are_refused(make: object, message: str) -> None:
    with pytest.raises(InexactError, match=message):
        make()  # type: ignore[operator]
