"""What stays as it was: names, metadata, symbolic sizes, versions, unread initializers, values."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import reparam
from onnx_graphs import Graph, assert_equal, counts, evaluate, sample


def block():
    """A block with three branches between two activations that keep their names."""
    g = Graph("batch", 8, "height", "width")
    start = g.relu(g.x)
    first = g.norm(g.conv(start, pads=[1, 1, 1, 1]))
    total = g.op("Add", first, g.norm(g.conv(start, size=1)))
    return g, g.relu(total)


def with_everything():
    g, end = block()
    model = g.model(end)
    model.producer_name, model.producer_version, model.domain = "somebody", "1.2", "their.own"
    model.model_version, model.doc_string = 7, "a net"
    helper.set_model_props(model, {"author": "somebody", "classes": "ten"})
    model.graph.doc_string = "its graph"
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    shapes = onnx.shape_inference.infer_shapes(model)
    model.graph.value_info.extend(shapes.graph.value_info)
    return model


def test_the_model_around_the_folds_stays():
    model = with_everything()

    fused = reparam.fuse(model)

    blank = copy.deepcopy(model), copy.deepcopy(fused)
    for each in blank:
        for field in ("node", "initializer", "value_info"):
            each.graph.ClearField(field)
    assert blank[0] == blank[1]
    kept = [n for n in model.graph.node if n.op_type == "Relu"]
    assert [n.name for n in fused.graph.node if n.op_type == "Relu"] == [n.name for n in kept]
    assert fused.graph.node[0] == kept[0]
    # The new layer has the name and the weight's name of the one with the largest weight.
    conv = fused.graph.node[1]
    original = next(n for n in model.graph.node if n.op_type == "Conv")
    assert (conv.name, conv.input[1]) == (original.name, original.input[1])
    assert_equal(model, fused)


def test_stale_value_infos_go_and_others_stay():
    model = with_everything()

    fused = reparam.fuse(model)

    made = {name for node in fused.graph.node for name in node.output}
    infos = {v.name: v for v in model.graph.value_info}
    assert len(infos) > len(fused.graph.value_info) > 0
    for value in fused.graph.value_info:
        assert value.name in made
        assert value == infos[value.name]


def test_other_batches_and_sizes_still_run():
    model = with_everything()
    fused = reparam.fuse(model)

    for shape in ((1, 8, 3, 3), (3, 8, 12, 5)):
        assert_equal(model, fused, np.random.default_rng(0).normal(size=shape))


def test_initializers_go_with_what_read_them_and_no_others():
    g, end = block()
    g.random(5, name="read by nobody")
    shared = g.random(8, 1, 1, name="shared")
    outer = g.op("Add", g.op("Mul", g.conv(end, size=1), shared), g.op("Mul", g.relu(end), shared))
    model = g.model(outer)

    fused = reparam.fuse(model)

    names = {t.name for t in fused.graph.initializer}
    assert {"read by nobody", "shared"} <= names
    read = {name for node in fused.graph.node for name in node.input}
    assert names - read == {"read by nobody"}
    assert_equal(model, fused)


def test_constant_nodes_and_what_they_fed_go():
    g = Graph()
    weight = g.rng.normal(size=(8, 8, 1, 1))
    stored = g.op("Constant", value=numpy_helper.from_array(weight))
    turned = g.op("Transpose", g.op("Identity", stored), perm=[1, 0, 2, 3])
    model = g.model(g.norm(g.op("Conv", g.x, turned)))

    fused = reparam.fuse(model)

    assert counts(fused) == {"Conv": 1}
    assert_equal(model, fused)


def test_outputs_in_the_middle_are_kept():
    g = Graph()
    middle = g.norm(g.conv(g.x))
    model = g.model(middle, g.relu(g.norm(g.conv(middle))))

    fused = reparam.fuse(model)

    assert counts(fused) == {"Conv": 2, "Relu": 1}
    assert [v.name for v in fused.graph.output] == [v.name for v in model.graph.output]
    assert_equal(model, fused)


def test_an_output_between_branches_stops_the_fold_there():
    g = Graph()
    branch = g.conv(g.x)
    model = g.model(branch, g.norm(branch))

    fused = reparam.fuse(model)

    assert counts(fused) == counts(model)
    assert_equal(model, fused)


def test_readers_of_a_shape_read_that_of_the_result():
    g = Graph()
    y = g.conv(g.x)
    shape = g.op("Shape", y)
    model = g.model(g.op("Reshape", g.relu(g.norm(y)), shape), g.op("Identity", shape))

    fused = reparam.fuse(model)

    assert counts(fused)["Conv"] == 1
    assert "BatchNormalization" not in counts(fused)
    x = sample(model)
    for left, right in zip(evaluate(model, x), evaluate(fused, x), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)


def test_old_files_list_their_new_initializers_as_inputs():
    """Up to IR version 3 every initializer is an input, too."""
    g = Graph()
    model = g.model(g.norm(g.conv(g.x)), ir=3, opset=8)
    shape = ["n", 8, "height", "width"]
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.DOUBLE, shape)
    )
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )

    fused = reparam.fuse(model)

    onnx.checker.check_model(fused)
    assert counts(fused) == {"Conv": 1}
    names = [v.name for v in fused.graph.input]
    assert names[0] == g.x
    assert set(names[1:]) == {t.name for t in fused.graph.initializer}


def test_fusing_twice_changes_nothing():
    model = with_everything()
    fused = reparam.fuse(model)

    again = reparam.plan(fused)

    assert not again.regions
    assert again.apply() == fused


def test_a_plan_reads_like_that_of_a_module():
    model = with_everything()

    plan = reparam.plan(model)

    [region] = plan.regions
    assert region.what == "3x3 conv + 1x1 conv + 2 batch norms + add"
    assert region.where == "Conv_1"
    assert (region.layers_before, region.stored_before > region.stored_after) == (5, True)
    assert isinstance(plan, reparam.Plan)
    assert "5 -> 1" in str(plan)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_the_fused_model_shares_nothing_with_the_original(kind):
    g = Graph(2, 8, 5, 5, dtype=kind)
    model = g.model(g.relu(g.norm(g.conv(g.x))))
    before = model.SerializeToString()
    fused = reparam.fuse(model)

    fused.graph.node[0].name = "changed"
    fused.graph.initializer[0].raw_data = bytes(len(fused.graph.initializer[0].raw_data))
    fused.graph.input[0].name = "changed"

    assert model.SerializeToString() == before


def test_a_branch_that_comes_before_the_padding_it_is_folded_behind():
    g = Graph()
    narrow = g.conv(g.x, size=1)
    padded = g.op("Pad", g.x, g.integers(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")
    model = g.model(g.relu(g.op("Add", narrow, g.norm(g.conv(padded)))))

    fused = reparam.fuse(model)

    assert counts(fused) == {"Pad": 1, "Conv": 1, "Relu": 1}
    assert_equal(model, fused)


def test_names_that_stand_for_several_sizes_are_not_trusted():
    """With every open size called ``?``, a reshape that mixes channels looks like one of layout."""
    g = Graph("?", 8, "?")
    y = g.conv(g.x, dims=1, pads=[1, 1])
    mixed = g.op("Reshape", y, g.integers(-1, 8, 2))
    model = g.model(g.op("Mul", mixed, g.random(8, 1)))
    info = helper.make_tensor_value_info(mixed, TensorProto.DOUBLE, ["?", 8, "?"])
    model.graph.value_info.append(info)
    del model.graph.output[0].type.tensor_type.shape.dim[:]

    fused = reparam.fuse(model)

    x = np.random.default_rng(0).normal(size=(2, 8, 6))
    [left], [right] = evaluate(model, x), evaluate(fused, x)
    np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)
    assert counts(fused)["Mul"] == 1


def test_an_operation_that_leaves_its_first_value_out():
    g = Graph(3, 2, 8)
    weights = [g.random(1, 16, 8), g.random(1, 16, 4)]
    g.nodes.append(
        helper.make_node("LSTM", [g.x, *weights], ["", "last"], name="lstm", hidden_size=4)
    )
    flat = g.op("Reshape", "last", g.integers(2, 4))
    y = g.op("Gemm", flat, g.random(4, 8))
    model = g.model(g.relu(g.norm(y)))

    fused = reparam.fuse(model)

    assert counts(fused) == {"LSTM": 1, "Reshape": 1, "Gemm": 1, "Relu": 1}
    assert_equal(model, fused)
