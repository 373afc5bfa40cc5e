"""Scales that go past what is added behind them, into layers that pad with zeros."""

from __future__ import annotations

import pytest

import reparam
from onnx_graphs import Graph, assert_equal, counts, run_in_ort, sample

SIZES = ("n", 8, 6, 8)


def normalised(scale="Mul", shift="Add", shape=(8, 1, 1), *, read=None, number=None, **how):
    g = Graph(*SIZES)
    factor = g.weight(g.rng.uniform(0.2, 2, size=shape) if number is None else number)
    x = g.op(scale, g.x, factor)
    y = g.op(shift, x, g.random(*shape))
    outputs = [y] if read == "seen" else [g.relu({"scaled": x, "added": y}[read])] if read else []
    size = how.pop("size", 3)
    return g.model(g.conv(y, size=size, bias=True, **how), *outputs)


@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize(("scale", "shift"), [("Mul", "Add"), ("Div", "Sub"), ("Mul", "Sub")])
def test_a_padded_layer_takes_a_scale_from_before_what_is_added(shape, scale, shift):
    model = normalised(scale, shift, shape, pads=[1] * 4)
    fused = reparam.fuse(model)
    assert counts(fused) == {"Add": 1, "Conv": 1}
    assert_equal(model, fused)


@pytest.mark.parametrize("how", [{"strides": [2, 2]}, {"group": 2}, {"size": 5}], ids=str)
def test_layers_of_any_kind(how):
    model = normalised(pads=[1] * 4, **how)
    fused = reparam.fuse(model)
    assert counts(fused) == {"Add": 1, "Conv": 1}
    assert_equal(model, fused)


def test_an_unpadded_layer_takes_both():
    model = normalised()
    fused = reparam.fuse(model)
    assert counts(fused) == {"Conv": 1}
    assert_equal(model, fused)


@pytest.mark.parametrize(
    "how", [{"read": "scaled"}, {"read": "added"}, {"read": "seen"}, {"number": 1e-6}], ids=str
)
def test_a_scale_stays_where_what_is_added_cannot_change(how):
    model = normalised(pads=[1] * 4, **how)
    fused = reparam.fuse(model)
    assert counts(fused)["Mul"] == 1
    assert_equal(model, fused)


def test_what_is_added_has_the_type_of_the_file():
    from onnx import TensorProto

    for kind in (TensorProto.FLOAT, TensorProto.FLOAT16):
        g = Graph(*SIZES, dtype=kind)
        y = g.op("Add", g.op("Mul", g.x, g.weight(0.5)), g.random(8, 1, 1))
        fused = reparam.fuse(g.model(g.conv(y, pads=[1] * 4)))
        assert counts(fused) == {"Add": 1, "Conv": 1}
        assert {t.data_type for t in fused.graph.initializer} == {kind}
        assert run_in_ort(fused, sample(fused))[0].shape == (2, 8, 6, 8)
