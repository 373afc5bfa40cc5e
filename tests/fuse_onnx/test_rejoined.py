"""Sums in which a value meets itself again, and scales before transposed convolutions."""

from __future__ import annotations

import numpy as np
import pytest

import reparam
from onnx_graphs import Graph, assert_equal, counts

SIZES = ("n", 8, 6, 8)


def blend(shape=(), *, seen=False, bent=False):
    """``a + w (b - a)`` of two branches."""
    g = Graph(*SIZES)
    a, b = g.conv(g.x, pads=[1] * 4), g.norm(g.conv(g.x, size=1))
    between = g.op("Sub", b, a)
    between = g.relu(between) if bent else between
    weight = g.weight(g.rng.uniform(0.2, 2, size=shape))
    total = g.op("Add", a, g.op("Mul", between, weight))
    return g.model(total, *([g.relu(a)] if seen else []))


@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1)])
def test_a_plus_w_times_b_minus_a_is_one_layer(shape):
    model = blend(shape)
    fused = reparam.fuse(model)
    assert counts(fused) == {"Conv": 1}
    assert_equal(model, fused)


@pytest.mark.parametrize("how", [{"seen": True}, {"bent": True}], ids=str)
def test_what_is_seen_or_bent_on_the_way_stays(how):
    model = blend(**how)
    fused = reparam.fuse(model)
    assert counts(fused)["Conv"] == 2
    assert_equal(model, fused)


def scaled(kind="Mul", *, bias=True, read=False, **how):
    """A scale or shift of each channel before a transposed convolution."""
    g = Graph(*SIZES)
    x = g.op(kind, g.relu(g.x), g.weight(g.rng.uniform(0.2, 2, size=(8, 1, 1))))
    size = how.pop("size", 4)
    weight = g.random(8, 4 // how.get("group", 1), size, size)
    out = g.op("ConvTranspose", x, weight, *([g.random(4)] if bias else []), **how)
    return g.model(out, *([g.op("Sigmoid", x)] if read else []))


@pytest.mark.parametrize("kind", ["Mul", "Div"])
@pytest.mark.parametrize(
    "how",
    [
        {"strides": [2, 2], "pads": [1] * 4},
        {"strides": [2, 2], "bias": False},
        {"strides": [3, 2], "size": 2, "output_padding": [1, 0]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"dilations": [2, 2]},
    ],
    ids=str,
)
def test_a_scale_goes_into_a_transposed_convolution(kind, how):
    model = scaled(kind, **how)
    fused = reparam.fuse(model)
    assert counts(fused) == {"Relu": 1, "ConvTranspose": 1}
    assert_equal(model, fused)


@pytest.mark.parametrize("how", [{"kind": "Add"}, {"read": True}], ids=str)
def test_what_a_transposed_convolution_does_not_see_alike_stays(how):
    model = scaled(strides=[2, 2], **how)
    fused = reparam.fuse(model)
    assert counts(fused) == counts(model)
    assert np.prod(fused.graph.initializer[0].dims) == np.prod(model.graph.initializer[0].dims)
    assert_equal(model, fused)


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1)])
def test_a_norm_passes_what_makes_equal_channels_of_one(shape):
    g = Graph("n", 1, 6, 8)
    spread = g.op("Expand", g.norm(g.relu(g.x), 1), g.integers(*shape))
    model = g.model(g.conv(spread, 4, 3, 1, bias=True))
    fused = reparam.fuse(model)
    assert counts(fused) == {"Relu": 1, "Expand": 1, "Conv": 1}
    assert_equal(model, fused)


def test_factors_of_their_own_behind_equal_channels_stay():
    g = Graph("n", 1, 6, 8)
    spread = g.op("Expand", g.conv(g.x, 1, 1, pads=[1] * 4), g.integers(1, 4, 1, 1))
    model = g.model(g.relu(g.norm(spread, 4)))
    fused = reparam.fuse(model)
    assert counts(fused) == counts(model)
    assert_equal(model, fused)


UP = {
    "contained": ({"size": 4, "pads": [1] * 4}, {"size": 2}),
    "output padding": ({"size": 3, "pads": [1] * 4, "output_padding": [1, 1]}, {"size": 2}),
    "dilated": (
        {"size": 5, "pads": [2] * 4, "output_padding": [1, 1]},
        {"size": 3, "pads": [2] * 4, "dilations": [2, 2], "output_padding": [1, 1]},
    ),
    "one side": ({"size": 3, "pads": [1, 0, 0, 1]}, {"size": 2}),
}


def ups(first, second, *, apart=False, read=False):
    g = Graph(*SIZES)
    values = []
    for how in (dict(first), dict(second)):
        weight = g.random(8, 4, *(how.pop("size"),) * 2)
        x = g.relu(g.x) if apart and values else g.x
        values.append(g.op("ConvTranspose", x, weight, g.random(4), strides=[2, 2], **how))
    return g.model(g.op("Sub", *values), *([g.relu(values[1])] if read else []))


@pytest.mark.parametrize("hows", UP.values(), ids=UP)
@pytest.mark.parametrize("turn", [1, -1])
def test_transposed_convolutions_of_one_stride_are_one_with_the_taps_of_all(hows, turn):
    model = ups(*hows[::turn])
    fused = reparam.fuse(model)
    assert counts(fused) == {"ConvTranspose": 1}
    assert_equal(model, fused)


@pytest.mark.parametrize("how", [{"apart": True}, {"read": True}], ids=str)
def test_transposed_convolutions_that_are_not_one_stay(how):
    model = ups(*UP["contained"], **how)
    fused = reparam.fuse(model)
    assert counts(fused)["ConvTranspose"] == 2
    assert_equal(model, fused)


@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_a_number_beside_a_value_of_unknown_shape_goes_into_the_layer_behind(kind):
    """Nothing tells the axes of the value but the convolution, behind the constant."""
    g = Graph()
    squeezed = g.op("Squeeze", g.relu(g.x))
    model = g.model(g.conv(g.op(kind, squeezed, g.weight(0.7)), size=1, bias=True))
    model.graph.output[0].type.CopyFrom(model.graph.input[0].type)
    fused = reparam.fuse(model)
    assert counts(fused) == {"Relu": 1, "Squeeze": 1, "Conv": 1}
    assert_equal(model, fused)
