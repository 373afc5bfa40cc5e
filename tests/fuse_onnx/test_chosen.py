"""A part of a graph is folded and the rest stays as it was."""

from __future__ import annotations

import pytest

import reparam
from onnx_graphs import Graph, assert_equal, counts
from reparam.errors import InputError


def two_blocks():
    """Two convolutions with norms, their operations named ``first/...`` and ``second/...``."""
    g = Graph("batch", 8, "height", "width")
    middle = g.relu(g.norm(g.conv(g.x, pads=[1, 1, 1, 1])))
    model = g.model(g.norm(g.conv(middle, pads=[1, 1, 1, 1])))
    for number, node in enumerate(model.graph.node):
        node.name = f"{'first' if number < 3 else 'second'}/{node.op_type}"
    return model


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("first", ["second/BatchNormalization"]),
        ("second/*", ["first/BatchNormalization"]),
        (lambda _, node: node.name.startswith("second"), ["first/BatchNormalization"]),
        (lambda name, _: not name.startswith("second"), ["second/BatchNormalization"]),
        (["first", "second"], []),
        ("first/Conv", ["first/BatchNormalization", "second/BatchNormalization"]),
    ],
)
def test_only_what_was_chosen_folds(where, left):
    model = two_blocks()
    before = model.SerializeToString()
    fused = reparam.fuse(model, where=where)
    assert model.SerializeToString() == before
    found = [node.name for node in fused.graph.node if node.op_type == "BatchNormalization"]
    assert found == left
    assert_equal(model, fused)


def test_a_value_names_the_operation_that_returns_it():
    model = two_blocks()
    names = [name for node in model.graph.node[:2] for name in node.output]
    assert counts(reparam.fuse(model, where=names))["BatchNormalization"] == 1


def test_what_fits_nothing_is_an_error():
    with pytest.raises(InputError, match="near it: first/Conv"):
        reparam.plan(two_blocks(), where="first/Conf")
