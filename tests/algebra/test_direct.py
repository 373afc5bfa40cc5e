"""Convolving small inputs is torch's convolution, and the positions that tell show every border."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from reparam.algebra import Geometry
from reparam.algebra.direct import Positions, at_positions, convolving, telling_positions

CONVOLUTIONS: Any = (F.conv1d, F.conv2d, F.conv3d)


@pytest.mark.parametrize(
    ("dims", "groups", "channels", "stride", "dilation"),
    [
        (dims, groups, channels, stride, dilation)
        for dims in (1, 2, 3)
        for (groups, channels) in ((1, (4, 6)), (2, (4, 6)), (4, (4, 4)), (4, (4, 8)))
        for stride, dilation in ((1, 1), (2, 1), (1, 3), (3, 2))
    ],
)
def test_it_convolves_as_torch_does(
    dims: int, groups: int, channels: tuple[int, int], stride: int, dilation: int
) -> None:
    inputs, outputs = channels
    x = torch.randn(2, inputs, *(9, 8, 7)[:dims], dtype=torch.float64)
    weight = torch.randn(outputs, inputs // groups, *(3, 2, 3)[:dims], dtype=torch.float64)
    bias = torch.randn(outputs, dtype=torch.float64)
    pads = ((1, 2), (0, 3), (2, 0))[:dims]
    padded = F.pad(x, [n for pair in reversed(pads) for n in pair])
    expected = CONVOLUTIONS[dims - 1](padded, weight, bias, stride, 0, dilation, groups)
    arguments = (weight.shape[2:], (stride,) * dims, pads, (dilation,) * dims, groups)
    torch.testing.assert_close(convolving(x, *arguments)(weight, bias), expected)
    sizes = tuple(expected.shape[2:])
    at = Positions(tuple((0, size - 1) for size in sizes), sizes)
    found = convolving(x, *arguments, at)(weight, bias)
    torch.testing.assert_close(found, at_positions(expected, at))
    with pytest.raises(ValueError, match="size"):  # one more position is noticed as well
        convolving(x, *arguments, Positions(at.places, tuple(size + 1 for size in sizes)))
    with pytest.raises(AssertionError):  # the control: another kernel is noticed there
        torch.testing.assert_close(convolving(x, *arguments, at)(weight + 1e-3, bias), found)


def test_positions_that_tell_hold_every_way_in_which_taps_leave_the_input() -> None:
    for offsets, stride, extra in itertools.product(
        ((-36, 0, 36), (-2, 0, 2), (-12, -6, 0, 6, 12), (0, 24)), (1, 2, 3), (0, 1, 7)
    ):
        extent = -1 - (offsets[0] + offsets[-1]) if offsets[0] < 0 else -1
        size = offsets[-1] - offsets[0] + 1 + extra
        at = telling_positions((size,), Geometry(1, 1, 1, (offsets,), (stride,), (extent,)))
        count = (size + extent) // stride + 1
        ways = [tuple(0 <= stride * p + t < size for t in offsets) for p in range(count)]
        if at is not None:
            assert {ways[p] for p in at.places[0]} == set(ways)
            assert 2 * len(at.places[0]) < count
            assert len(at.places[0]) <= 3 * (2 * len(offsets) + 1)


def test_a_compact_kernel_is_compared_everywhere() -> None:
    geometry = Geometry(1, 1, 1, ((-1, 0, 1),) * 2, (1, 1), (0, 0))
    assert telling_positions((4, 4), geometry) is None
