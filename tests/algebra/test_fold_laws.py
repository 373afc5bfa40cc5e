"""The identities of folds that are more than ``+`` and ``@``, by action and by kernel.

Numbers are small and whole (weights of a mean halves), so that both sides are equal bit for bit.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from reparam import algebra
from reparam.algebra import AffineConv, Geometry, Leaf, picked_leaf, rerouted
from reparam.errors import InexactError
from reparam.frontends.hosted import (
    rows_of_transposed,
    spread_of_transposed,
    transposed_of_rows,
    window_of_transposed,
)
from reparam.frontends.routes import order_of, route
from reparam.planner.crossing import after, ahead_of
from reparam.program import Routed

from .operators import beside, inputs_for, operators, same_map, whole_numbers

if TYPE_CHECKING:
    from collections.abc import Callable

UP = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
SIZES = (4, 3, 5)

# ------------------------------------------------------------------ a value that meets itself


@given(data=st.data(), a=operators())
def test_a_plus_w_times_b_minus_a_is_one_operator(data: st.DataObject, a: AffineConv) -> None:
    r""":math:`a + w (b - a) = (1 - w) a + w b`, with a number for each channel."""
    b, dims = data.draw(beside(a)), a.geometry.dims
    w = whole_numbers(a.geometry.out_channels)
    scale, rest = algebra.scale(w, dims=dims), algebra.scale(1 - w, dims=dims)
    one = rest @ a + scale @ b
    assert same_map(a + scale @ (b - a), one)
    for x in inputs_for(a):
        factors = w.view(-1, *(1,) * dims) if dims else w
        assert torch.equal(one(x), a(x) + factors * (b(x) - a(x)))
    shaped = w.view(-1, *(1,) * (dims + 1))
    union = a + b  # has the taps and groups of the sum
    mine, yours = a + 0 * union, b + 0 * union
    assert torch.equal((one + 0 * union).kernel, (1 - shaped) * mine.kernel + shaped * yours.kernel)


@given(a=operators(cin=4, cout=4))
def test_a_value_blended_with_a_branch_of_it_is_one_operator(a: AffineConv) -> None:
    r""":math:`\mathrm{lerp}(x, a(x), w) = ((1 - w) I + w a)(x)` where ``a`` keeps the size."""
    identity = algebra.identity(4, dims=a.geometry.dims)
    try:
        one = -1.0 * identity + 2.0 * a
    except InexactError:
        size = (9,) * a.geometry.dims
        assert a.geometry.output_size(size) != size or a.geometry.stride != (1,) * a.geometry.dims
        return
    for x in inputs_for(a):
        assert torch.equal(one(x), torch.lerp(x, a(x), 2.0))
    wide = a + 0 * identity  # has a tap at the centre
    assert torch.equal(one.kernel, 2 * wide.kernel - (identity + 0 * wide).kernel)


@given(data=st.data(), a=operators(dims=2))
def test_branches_of_different_strides_or_sizes_meet_in_no_operator(
    data: st.DataObject, a: AffineConv
) -> None:
    b = data.draw(beside(a))
    geometry = b.geometry
    moved = Geometry(
        geometry.in_channels, geometry.out_channels, geometry.groups, geometry.offsets,
        geometry.stride, tuple(e - 1 for e in geometry.extent), bias=geometry.bias,
    )  # fmt: skip
    with pytest.raises(InexactError, match="extent"):
        _ = a + 2.0 * (AffineConv(moved, b.kernel, b.bias) - a)


# ------------------------------------------------------------------ transposed convolutions


def transposed(dims: int, groups: int, *sizes: int) -> torch.Tensor:
    return whole_numbers(4, 8 // groups, *sizes[:dims])


HOWS = [
    {"stride": 2, "padding": 1},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": 3},
    {"stride": 2, "dilation": 2},
    {"stride": 1, "padding": 2},
]


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize(("dims", "groups"), [*itertools.product((1, 2, 3), (1, 2, 4))])
def test_a_scale_before_a_transposed_convolution_scales_its_weight(
    dims: int, groups: int, how: dict[str, int]
) -> None:
    r""":math:`\sum_{i,k} W[i, o, k] (s_i x_i) = \sum_{i,k} (s_i W[i, o, k]) x_i`, any stride."""
    weight, s = transposed(dims, groups, 4, 3, 2), whole_numbers(4)
    x, shaped = whole_numbers(2, 4, *SIZES[:dims]), s.view(4, *(1,) * dims)
    scaled = weight * shaped[:, None]
    up = UP[dims]
    assert torch.equal(
        up(x * shaped, weight, groups=groups, **how), up(x, scaled, groups=groups, **how)
    )
    rows = rows_of_transposed(weight, groups)
    spread = spread_of_transposed(weight.shape)
    leaf = Leaf.of(Geometry.pointwise(4, 4, dims=0, groups=4), lambda: algebra.scale(s))
    factors = rerouted(leaf, spread).load(None)
    outer = AffineConv(Geometry.pointwise(len(spread), 8, dims=0, groups=groups), rows)
    assert torch.equal((outer @ factors).kernel, rows_of_transposed(scaled, groups))
    assert torch.equal(transposed_of_rows(rows, groups, weight.shape[2:]), weight)


def test_a_shift_before_a_transposed_convolution_is_no_bias_of_it() -> None:
    """It comes out as another number wherever fewer taps meet the input: at borders, or between."""
    for how in HOWS[:4]:
        weight = torch.arange(72, dtype=torch.float64).view(4, 2, 3, 3)
        came = F.conv_transpose2d(torch.ones(1, 4, 5, 5, dtype=torch.float64), weight, **how)
        assert len(came[0, 0].unique()) > 1


@pytest.mark.parametrize(
    ("hows", "sizes"),
    [
        ([{"stride": 2, "padding": 1}, {"stride": 2}], (4, 2)),
        ([{"stride": 2, "padding": 1, "output_padding": 1}, {"stride": 2}], (3, 2)),
        ([{"stride": 3, "padding": 1, "output_padding": 1}, {"stride": 3}], (4, 3)),
        ([{"stride": 1, "padding": 1}, {"stride": 1}], (3, 1)),
        ([{"stride": 2, "padding": 2, "output_padding": 1},
          {"stride": 2, "padding": 2, "dilation": 2, "output_padding": 1}], (5, 3)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("dims", "groups"), [*itertools.product((1, 2, 3), (1, 2, 4))])
def test_transposed_convolutions_of_one_stride_are_one_with_the_taps_of_both(
    dims: int, groups: int, hows: list[dict[str, int]], sizes: tuple[int, int]
) -> None:
    r""":math:`D_1(x) + D_2(x)` has at each place :math:`d k - l` the sum of the two taps there."""
    weights = [transposed(dims, groups, size, size, size) for size in sizes]
    windows = []
    for weight, how in zip(weights, hows, strict=True):
        names = (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
        step, pad, more, gap = ((how.get(name, usual),) * dims for name, usual in names)
        pads = [(n, n) for n in pad]
        windows.append(window_of_transposed(weight.shape, step, pads, more, gap, groups))
    (left, every), (right, own) = windows
    assert left == right
    places = {taps: k for k, taps in enumerate(itertools.product(*every))}
    taken = [places[taps] for taps in itertools.product(*own)]
    wide, narrow = (rows_of_transposed(weight, groups) for weight in weights)
    picked = picked_leaf(4, len(places), taken, 0).load(None)
    rows = AffineConv(Geometry.pointwise(4 * len(taken), 8, dims=0, groups=groups), narrow)
    both = transposed_of_rows(wide + (rows @ picked).kernel, groups, weights[0].shape[2:])
    x = whole_numbers(2, 4, *SIZES[:dims])
    first, second = (
        UP[dims](x, weight, groups=groups, **how) for weight, how in zip(weights, hows, strict=True)
    )
    assert torch.equal(UP[dims](x, both, groups=groups, **hows[0]), first + second)
    near = both.contiguous().clone()
    near.view(-1)[0] += 1
    assert not torch.equal(UP[dims](x, near, groups=groups, **hows[0]), first + second)


def test_windows_of_other_strides_sizes_or_groups_are_not_alike() -> None:
    def window(stride: int = 2, pad: int = 1, more: int = 0, groups: int = 1) -> object:
        return window_of_transposed((4, 8, 4), (stride,), [(pad, pad)], (more,), (1,), groups)[0]

    assert len({window(), window(stride=3), window(pad=0), window(more=1), window(groups=2)}) == 5


# ------------------------------------------------------------------ elements that move

MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "pixels": lambda x: F.pixel_shuffle(x, 2),
    "unpixels": lambda x: F.pixel_unshuffle(x, 2),
    "shuffled": lambda x: F.channel_shuffle(x, 2),
    "rolled": lambda x: x.roll((1, 2), (1, 3)),
    "repeated": lambda x: x.repeat(1, 2, 1, 3),
    "picked": lambda x: x[:, [3, 0, 0], ..., 1::2],
    "turned": lambda x: x.rot90(1, (2, 3)).flip(1),
    "behind": lambda x: x.movedim(1, -1)[:, None],
    "split": lambda x: x.tensor_split(2, 1)[1].unsqueeze(2),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_scale_passes_what_moves_elements_as_its_route_says(
    move: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Forward where each channel is made of some that have one factor; backward where those do."""
    found = route(move, 4, -3, 4, reach=2)
    assert found is not None
    shape = [1] * found.rank
    shape[found.axis] = -1
    s, b, x = whole_numbers(4), whole_numbers(4), whole_numbers(2, 4, 4, 6)
    routed = Routed(inputs=(), key=0, order=0, what="", where="", origins=found.origins)
    there = after(routed, tuple(range(4)))
    if there is not None:
        behind = move(x) * s[list(there)].view(shape) + b[list(there)].view(shape)
        assert torch.equal(move(x * s.view(4, 1, 1) + b.view(4, 1, 1)), behind)
    here = ahead_of(routed, tuple(range(len(found.origins))), 4)
    if here is not None:
        t = whole_numbers(len(found.origins))
        own = torch.tensor([1.0 if k is None else t[k] for k in here], dtype=torch.float64)
        assert torch.equal(move(x) * t.view(shape), move(x * own.view(4, 1, 1)))
    assert there is not None or here is not None


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.roll(1),
        lambda x: x.reshape(-1, 4),
        lambda x: x.flatten(),
        lambda x: x.transpose(1, 2).reshape(x.shape),
        lambda x: x.repeat_interleave(2),
        lambda x: x[:, :, 0, 0].reshape(-1),
    ],
    ids=range(6),
)
def test_what_tears_channels_apart_has_no_route(
    move: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    assert route(move, 4, -3, 4) is None


@given(order=st.permutations(range(4)))
def test_a_permutation_is_read_as_its_order(order: list[int]) -> None:
    assert order_of(lambda x: x.permute(order), 4) == order
    found = route(lambda x: x.permute(order), 4, -3, 5)
    assert found is not None
    assert found.axis + 4 == order.index(1)
    assert found.is_in_place(5)
    assert found.batch == (order[0] == 0)


def test_equal_channels_made_of_one_take_one_factor_and_no_others() -> None:
    """A scale behind ``expand`` goes before it only where all of its factors are one."""
    found = route(lambda x: x.expand(-1, 4, -1, -1), 4, -3, 1)
    assert found is not None
    routed = Routed(inputs=(), key=0, order=0, what="", where="", origins=found.origins)
    assert after(routed, (0,)) == (0, 0, 0, 0)
    assert ahead_of(routed, (0, 1, 2, 3), 1) is None
    assert ahead_of(routed, (2, 2, 2, 2), 1) == (2,)
    x, s, kernel = whole_numbers(2, 1, 5, 4), whole_numbers(1), whole_numbers(3, 4, 3, 3)
    behind = algebra.conv(kernel) @ algebra.scale(s.expand(4), dims=2)
    assert torch.equal(
        behind(x.expand(-1, 4, -1, -1)), F.conv2d((x * s).expand(-1, 4, -1, -1), kernel)
    )
    assert torch.equal(behind.kernel, kernel * s)
