"""Operations whose numbers hold for one size, layers that say why they stay, and single numbers."""

from __future__ import annotations

import pytest

import reparam
from onnx_graphs import Graph, assert_equal, counts
from reparam.reasons import Why


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("ends", [9, -1, 8, 10, 2**40])
@pytest.mark.parametrize("start", [0, 1])
def test_a_crop_that_counts_from_the_front_folds(dims, ends, start):
    g = Graph(2, 8, *(8,) * dims)
    y = g.conv(g.x, dims=dims, bias=True, pads=[2] * (2 * dims))
    axes = range(2, 2 + dims)
    y = g.op(
        "Slice", y, g.integers(*(start,) * dims), g.integers(*(ends,) * dims), g.integers(*axes)
    )
    y = g.norm(y)
    model = g.model(y)
    fused = reparam.fuse(model)
    assert_equal(model, fused)
    assert counts(fused) == {"Conv": 1}


@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize(
    ("dims", "how"),
    [
        (1, {"output_shape": [13]}),
        (2, {"output_shape": [13, 12]}),
        (2, {"output_shape": [11, 12], "auto_pad": "SAME_UPPER"}),
        (2, {"output_padding": [1, 1]}),
        (3, {"output_shape": [13, 13, 13]}),
    ],
)
def test_transposed_convolutions_of_a_given_output_shape_take_norms(dims, how, group):
    g = Graph(1, 8, *(6,) * dims)
    weight = g.random(8, 8 // group, *(3,) * dims)
    y = g.op("ConvTranspose", g.x, weight, group=group, strides=[2] * dims, **how)
    model = g.model(g.norm(y))
    fused = reparam.fuse(model)
    assert counts(fused) == {"ConvTranspose": 1}
    assert [list(a.ints) for a in fused.graph.node[0].attribute if a.name == "output_shape"] == [
        value for key, value in how.items() if key == "output_shape"
    ]


@pytest.mark.parametrize(
    ("shape", "how", "kind"),
    [
        ((5, 8), {}, Why.ADDEND_OF_ROWS),
        ((5, 1), {}, Why.ADDEND_OF_ROWS),
        ((8,), {"transA": 1}, Why.TURNED_INPUT),
    ],
)
def test_a_gemm_that_is_no_layer_says_why(shape, how, kind):
    g = Graph(*((8, 5) if how else (5, 8)))
    y = g.op("Gemm", g.x, g.random(8, 8), g.random(*shape), **how)
    model = g.model(g.norm(y))
    plan = reparam.plan(model)
    assert not plan.regions
    assert kind in {refusal.reason.kind for refusal in plan.refusals}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1), (8, 1, 1)])
@pytest.mark.parametrize("kind", ["Add", "Sub"])
@pytest.mark.parametrize("before", [False, True], ids=["behind", "before"])
def test_a_shift_by_few_numbers_becomes_a_bias(shape, kind, before):
    """The bias stores more numbers than the shift did, and a whole pass over the values goes."""
    g = Graph()
    y = g.x
    if before:
        y = g.conv(g.op(kind, g.relu(y), g.random(*shape)))
    else:
        y = g.op(kind, g.conv(y), g.random(*shape))
    model = g.model(g.relu(y))
    fused = reparam.fuse(model)
    assert counts(fused) == ({"Relu": 2, "Conv": 1} if before else {"Relu": 1, "Conv": 1})
    assert_equal(model, fused)


def test_the_normalisation_of_a_picture_goes_into_the_layer_behind_it():
    """Three means and deviations become sixteen biases."""
    g = Graph("n", 3, "h", "w")
    y = g.op("Sub", g.relu(g.x), g.random(3, 1, 1))
    y = g.op("Div", y, g.weight(g.rng.uniform(0.5, 2, (3, 1, 1))))
    model = g.model(g.relu(g.conv(y, 3, 16)))
    fused = reparam.fuse(model)
    assert counts(fused) == {"Relu": 2, "Conv": 1}
    assert_equal(model, fused)
