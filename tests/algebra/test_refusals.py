"""What is refused, with both sides in the message, and whether it had to be.

A refusal is *necessary* if folding anyway would give something else for an input of some size. The
few that are not are *conservative*: the second operator pads, but its stride or its dilation passes
over every padded position at which the first is not zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from reparam import algebra
from reparam.algebra import AffineConv, Geometry
from reparam.errors import InexactError

from .operators import after, beside, by_definition, defined, inputs_for, operators

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.algebra.builders import Padding

# ------------------------------------------------------------------------------ messages


def geometry(**changes: object) -> Geometry:
    """A 3x3 convolution 4->4 with padding 1, but for what is given."""
    fields: dict = {
        "in_channels": 4, "out_channels": 4, "offsets": ((-1, 0, 1),) * 2, "stride": (1, 1),
        "extent": (-1, -1),
    } | changes  # fmt: skip
    return Geometry(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"in_channels": 8},
            r"branches differ in input channels: 4 \(3x3 conv 4->4, padding 1\) against "
            r"8 \(3x3 conv 8->4, padding 1\)",
            id="input channels",
        ),
        pytest.param(
            {"out_channels": 8},
            r"differ in output channels: 4 \(.*4->4.*\) against 8 \(.*4->8.*\)",
            id="output channels",
        ),
        pytest.param(
            {"offsets": ((-1, 0, 1),), "stride": (1,), "extent": (-1,)},
            r"differ in spatial dimensions: 2 \(3x3 conv .*\) against 1 \(3 conv .*\)",
            id="dimensions",
        ),
        pytest.param(
            {"stride": (2, 2)},
            r"differ in stride: \(1, 1\) \(.*\) against \(2, 2\) \(.*stride 2.*\)",
            id="stride",
        ),
        pytest.param(
            {"offsets": ((0, 1, 2),) * 2, "extent": (-3, -3)},
            r"differ in output extent: \(-1, -1\) \(.*padding 1\) against \(-3, -3\) "
            r"\(3x3 conv 4->4\); the sizes of their outputs differ, so the paddings do not line",
            id="extent",
        ),
    ],
)
def test_branches_that_do_not_line_up(changes: dict, message: str) -> None:
    left, right = (_zeros(g) for g in (geometry(), geometry(**changes)))
    with pytest.raises(InexactError, match=message):
        _ = left + right


POINT = {"offsets": ((0,), (0,))}


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        pytest.param(
            {"in_channels": 8}, {},
            r"channels do not match: 8 expected by the second \(3x3 conv 8->4, padding 1\) "
            r"against 4 given by the first \(3x3 conv 4->4, padding 1\)",
            id="channels",
        ),
        pytest.param(
            {}, {"offsets": (), "stride": (), "extent": ()},
            r"dimensions do not match: 2 \(3x3 conv .*\) against 0 \(linear 4->4\)",
            id="dimensions",
        ),
        pytest.param(
            {}, {**POINT, "bias": True},
            r"a bias is seen through zero padding: the second \(3x3 .*padding 1\) pads its input "
            r"with zeros, where the first \(1x1 conv 4->4\) with its bias would not be zero",
            id="bias through padding",
        ),
        pytest.param(
            {}, {},
            r"a padded second kernel: the second \(3x3 conv 4->4, padding 1\) pads its input with "
            r"zeros, where the first \(3x3 conv 4->4, padding 1\) still meets its own input",
            id="padded second kernel",
        ),
        pytest.param(
            {"extent": (-1, -3), "offsets": ((-1, 0, 1), (0, 1, 2))},
            {"offsets": ((0, 1), (0, 1)), "extent": (-2, -2)},
            r"a padded second kernel",
            id="padded in one dimension, before the input",
        ),
        pytest.param(
            {"offsets": ((0, 1),) * 2}, {"offsets": ((-1, 0),) * 2, "extent": (-1, -1)},
            r"a padded second kernel",
            id="padded behind the input only",
        ),
    ],
)  # fmt: skip
def test_compositions_that_are_not_exact(outer: dict, inner: dict, message: str) -> None:
    second, first = _zeros(geometry(**outer)), _zeros(geometry(**inner))
    with pytest.raises(InexactError, match=message):
        _ = second @ first


def _zeros(described: Geometry) -> AffineConv:
    bias = torch.zeros(described.out_channels) if described.bias else None
    return AffineConv(described, torch.zeros(described.kernel_shape), bias)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: (_conv(3, padding=0), _conv(1, bias=True)), id="bias, no padding"),
        pytest.param(lambda: (_conv(1), _conv(3, padding=1, bias=True)), id="kxk, then 1x1"),
        pytest.param(lambda: (_conv(3, padding=1), _conv(1)), id="1x1 without bias, then kxk"),
        pytest.param(lambda: (_conv(3, padding=1), _conv(1, stride=2)), id="strided 1x1, then kxk"),
        pytest.param(lambda: (_conv(3), _conv(3, padding=1, bias=True)), id="two kxk, one padded"),
        pytest.param(
            lambda: (_conv(2, stride=2, padding=((1, 0),) * 2), _conv(2, stride=2)),
            id="2x2 patches, padded where no patch is cut off",
        ),
    ],
)
def test_compositions_that_are_exact(make: object) -> None:
    """The neighbours of the refused ones."""
    outer, inner = make()  # type: ignore[operator]
    both = outer @ inner
    for x in inputs_for(inner, outer):
        torch.testing.assert_close(both(x), outer(inner(x)), rtol=1e-12, atol=1e-12)


def _conv(size: int, *, stride: int = 1, padding: Padding = 0, bias: bool = False) -> AffineConv:
    weight = torch.randn(3, 3, size, size, dtype=torch.float64)
    shift = torch.randn(3, dtype=torch.float64) if bias else None
    return algebra.conv(weight, shift, stride=stride, padding=padding)


# ------------------------------------------------------------------------------ necessity


def generic(op: AffineConv) -> AffineConv:
    """Give an operator numbers none of which is zero, not even by chance in a sum."""
    bias = None if op.bias is None else torch.randn_like(op.bias)
    return AffineConv(op.geometry, torch.randn_like(op.kernel), bias)


def folded_anyway(outer: AffineConv, inner: AffineConv) -> AffineConv:
    """Compose without asking whether padding is read."""
    with mock.patch("reparam.algebra.geometry._check_padding_reads"):
        return outer @ inner


def every_size(outer: AffineConv, inner: AffineConv) -> Iterator[torch.Tensor]:
    """Inputs of all sizes over a period of both strides, large enough for an interior."""
    dims = inner.geometry.dims
    steps = [a * b for a, b in zip(inner.geometry.stride, outer.geometry.stride, strict=True)]
    for extra in range(max(steps)):
        yield torch.randn(1, inner.geometry.in_channels, *(30 + extra,) * dims).double()


def is_wrong(outer: AffineConv, inner: AffineConv) -> bool:
    both = folded_anyway(outer, inner)
    return any(
        not torch.allclose(both(x), outer(inner(x)), rtol=1e-9, atol=1e-9)
        for x in every_size(outer, inner)
    )


def positions_read(outer: AffineConv, size: int) -> set[int]:
    """Positions of its input that a one-dimensional operator reads."""
    (taps,), (step,) = outer.geometry.offsets, outer.geometry.stride
    (count,) = outer.geometry.output_size((size,))
    return {step * p + t for p in range(count) for t in taps}


def positions_not_zero(inner: AffineConv, size: int) -> set[int]:
    """Positions outside of its output at which an operator without bias would not be zero."""
    (taps,), (step,) = inner.geometry.offsets, inner.geometry.stride
    (count,) = inner.geometry.output_size((size,))
    around = [*range(-40, 0), *range(count, count + 40)]
    return {q for q in around if any(0 <= step * q + t < size for t in taps)}


@given(data=st.data(), inner=operators(dims=1))
def test_a_refused_composition_would_be_wrong(data: st.DataObject, inner: AffineConv) -> None:
    """For some input; or else the positions that are read show why not."""
    outer = generic(data.draw(operators(dims=1, cin=inner.geometry.out_channels)))
    inner = generic(inner)
    assume(defined(lambda: outer @ inner) is None)
    if is_wrong(outer, inner):
        return
    assert inner.bias is None, "a bias that is seen through padding always matters"
    for x in every_size(outer, inner):
        (middle,) = inner.geometry.output_size(tuple(x.shape[2:]))
        assert not positions_read(outer, middle) & positions_not_zero(inner, x.shape[2])


@settings(max_examples=60)
@given(data=st.data(), inner=operators(dims=2, cin=1, cout=2, bias=True))
def test_a_bias_seen_through_padding_always_matters(data: st.DataObject, inner: AffineConv) -> None:
    """In any dimension, whatever the strides."""
    outer = data.draw(operators(dims=2, cin=2, cout=1))
    assume(defined(lambda: outer @ inner) is None)
    assert is_wrong(generic(outer), generic(inner))


@given(data=st.data(), a=operators(dims=1), b=operators(dims=1))
def test_a_refused_sum_would_be_wrong(data: st.DataObject, a: AffineConv, b: AffineConv) -> None:
    """Branches that are refused return different sizes for some input, or cannot share one."""
    b = data.draw(st.sampled_from([b, data.draw(beside(a))]))
    if defined(lambda: a + b) is not None:
        return
    left, right = a.geometry, b.geometry
    if (left.in_channels, left.out_channels) != (right.in_channels, right.out_channels):
        return
    assert any(left.output_size((n,)) != right.output_size((n,)) for n in range(30, 80))


# ------------------------------------------------------------------------------ can this fail?


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        pytest.param(
            "reparam.algebra.geometry._check_padding_reads", lambda *_: None,
            id="padding is never looked at",
        ),
        pytest.param(
            "reparam.algebra.affine_conv._positions",
            lambda _, inner: (
                slice(None), slice(None), *(slice(0, len(t)) for t in inner.offsets)
            ),
            id="the smaller kernel goes to a corner",
        ),
        pytest.param(
            "reparam.algebra.affine_conv._per_input",
            lambda scale, geometry: scale.reshape(-1)[: geometry.in_channels // geometry.groups]
            .reshape(1, -1, *(1,) * geometry.dims),
            id="every group gets the scale of the first",
        ),
        pytest.param(
            "reparam.algebra.affine_conv.AffineConv._sum_taps_with",
            lambda op, _: torch.zeros(op.geometry.out_channels).double(),
            id="the bias of the first is lost",
        ),
    ],
)  # fmt: skip
def test_the_laws_find_a_wrong_rule(
    monkeypatch: pytest.MonkeyPatch, target: str, wrong: object
) -> None:
    """A mistake in `+` or `@` does not pass the comparison by action."""
    monkeypatch.setattr(target, wrong)

    @settings(max_examples=300, derandomize=True, database=None, phases=[Phase.generate])
    @given(data=st.data(), a=operators())
    def search(data: st.DataObject, a: AffineConv) -> None:
        b, c = data.draw(beside(a)), data.draw(after(a))
        for x in inputs_for(a, c):
            torch.testing.assert_close((a + b)(x), a(x) + b(x), rtol=0, atol=0)
            torch.testing.assert_close((c @ a)(x), c(a(x)), rtol=0, atol=0)

    with pytest.raises((AssertionError, RuntimeError)):
        search()


def test_the_definition_finds_a_wrong_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference semantics are themselves compared with the sum as it is written."""
    right = AffineConv.__call__
    monkeypatch.setattr(AffineConv, "__call__", lambda op, x: right(op, x.flip(-1)).flip(-1))
    op = algebra.conv(torch.tensor([[[1.0, 2.0, 3.0]]]), padding=1)
    x = torch.tensor([[[1.0, 5.0, 7.0, 9.0]]])
    assert not torch.equal(op(x), by_definition(op, x))
