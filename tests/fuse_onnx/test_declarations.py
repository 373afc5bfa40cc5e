"""Files whose declarations ONNX Runtime takes, and others do not: sizes, order, inputs, weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import reparam
from onnx_graphs import Graph, assert_equal, counts, run_in_ort, sample
from reparam.errors import InputError
from reparam.fusing import freeze_inputs, fuse_onnx_file
from reparam.reasons import Why


def block(g, x, **how):
    y = g.norm(g.conv(x, pads=[1, 1, 1, 1], **how))
    return g.relu(g.op("Add", y, g.norm(g.conv(x, size=1, **how))))


def fused_file(model, folder, **options):
    source = folder / "net.onnx"
    onnx.save_model(model, source)
    return fuse_onnx_file(source, folder / "fused.onnx", **options)


def declare(value, sizes):
    """Write sizes as they are, minus one and zero too."""
    del value.type.tensor_type.shape.dim[:]
    for size in sizes:
        dim = value.type.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


@pytest.mark.parametrize(
    "sizes",
    [(-1, 8, -1, -1), (0, 8, 0, 0), (-1, 8, 6, 6), (None, None, None, None), (-1, -1, 6, 6)],
)
@pytest.mark.parametrize("whole", [False, True], ids=["input", "every value"])
def test_sizes_below_one_are_open(sizes, whole, tmp_path):
    g = Graph("n", 8, "h", "w", dtype=TensorProto.FLOAT)
    y = block(g, block(g, g.x))
    model = g.model(y)
    declare(model.graph.input[0], sizes)
    if whole:
        declare(model.graph.output[0], sizes)

    result = fused_file(model, tmp_path)

    assert result.verdict.ok
    assert 0 < result.verdict.control < 1e-3
    assert result.after == {"Conv": 2, "Relu": 2}
    written = onnx.load(result.path)
    onnx.checker.check_model(written, full_check=True)
    assert all(d.dim_value >= 0 for d in written.graph.input[0].type.tensor_type.shape.dim)
    run_in_ort(written, np.zeros((3, 8, 6, 6), np.float32))


@pytest.mark.parametrize("shuffle", [lambda nodes: nodes[::-1], lambda n: n[1::2] + n[::2]])
def test_operations_out_of_order_are_put_in_order_and_it_is_said(shuffle, tmp_path):
    g = Graph(2, 8, 6, 6, dtype=TensorProto.FLOAT)
    model = g.model(block(g, block(g, g.x)))
    nodes = shuffle(list(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    before = model.SerializeToString()

    result = fused_file(model, tmp_path)

    assert model.SerializeToString() == before
    assert result.after == {"Conv": 2, "Relu": 2}
    assert len(result.plan.notes) == 1
    assert result.plan.notes[0] in str(result.plan)
    onnx.checker.check_model(result.path, full_check=True)
    assert not reparam.plan(reparam.fuse(model)).notes


def test_operations_in_a_circle_are_an_input_error():
    g = Graph(2, 8, 6, 6)
    y = g.op("Add", "v1", g.x)
    model = helper.make_model(
        helper.make_graph(
            [*g.nodes, helper.make_node("Relu", [y], ["v1"])],
            "circle",
            [helper.make_tensor_value_info(g.x, TensorProto.DOUBLE, [2, 8, 6, 6])],
            [helper.make_tensor_value_info("v1", TensorProto.DOUBLE, [2, 8, 6, 6])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with pytest.raises(InputError, match="circle"):
        reparam.plan(model)


def with_listed_weights(model):
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return model


def test_weights_that_are_inputs_too_fold_once_they_are_frozen(tmp_path):
    g = Graph(2, 8, 6, 6, dtype=TensorProto.FLOAT)
    model = with_listed_weights(g.model(block(g, g.x)))
    before = model.SerializeToString()

    left = fused_file(model, tmp_path)
    done = fused_file(model, tmp_path, freeze_inputs=True)

    assert left.after == left.before
    assert {refusal.reason.kind for refusal in left.plan.refusals} == {Why.OVERRIDABLE}
    assert done.after == {"Conv": 1, "Relu": 1}
    assert 0 < done.verdict.control < 1e-3
    assert [value.name for value in onnx.load(done.path).graph.input] == [g.x]
    assert model.SerializeToString() == before
    assert counts(reparam.fuse(freeze_inputs(model))) == done.after


def test_weights_that_are_inputs_of_old_versions_are_constant():
    """There was no other way to write them."""
    g = Graph(2, 8, 6, 6)
    model = with_listed_weights(g.model(block(g, g.x), opset=8, ir=3))
    fused = reparam.fuse(model)
    assert counts(fused) == {"Conv": 1, "Relu": 1}
    assert freeze_inputs(model) is model


def test_weights_of_old_versions_that_are_no_inputs_are_constant(tmp_path):
    g = Graph(2, 8, 6, 6, dtype=TensorProto.FLOAT)
    result = fused_file(g.model(block(g, g.x), opset=8, ir=3), tmp_path)
    assert result.after == {"Conv": 1, "Relu": 1}


def two_inputs(first, second, join="Add"):
    g = Graph(*first, dtype=TensorProto.FLOAT)
    left, right = block(g, g.x), block(g, "other")
    y = g.op(join, left, right, **({"axis": 0} if join == "Concat" else {}))
    model = helper.make_model(
        helper.make_graph(
            g.nodes,
            "two",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
                for name, shape in ((g.x, first), ("other", second))
            ],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
            g.tensors,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return model, g.x


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("n", 8, "h", "w"), ("n", 8, "h", "w")),
        (("n", 8, 6, 6), ("n", 8, 6, "w")),
        (("?", "?", "?", "?"), ("?", "?", "?", "?")),
        (("n", "c", "h", "w"), (2, 8, 64, "w")),
    ],
)
def test_sizes_of_one_name_are_one_size_in_all_inputs(first, second, tmp_path):
    model, _ = two_inputs(first, second)
    result = fused_file(model, tmp_path)
    assert result.after["Conv"] == 2
    assert result.verdict.ok


def test_shapes_of_several_inputs_are_taken_by_name_and_name_sizes_for_the_others(tmp_path):
    model, name = two_inputs(("n", 8, "h", "w"), ("n", 8, "h", "w"))
    for shapes in ({name: (3, 8, 5, 7), "other": (3, 8, 5, 7)}, {"other": (3, 8, 5, 7)}):
        assert fused_file(model, tmp_path, input_shapes=shapes).verdict.ok


def test_a_batch_of_one_is_tried_where_two_fails(tmp_path):
    g = Graph("n", 8, "h", "w", dtype=TensorProto.FLOAT)
    flat = g.op("Reshape", block(g, g.x), g.integers(8, -1))
    mean = g.op("ReduceMean", flat, axes=[1])
    y = g.op("Mul", g.op("Reshape", mean, g.integers(1, 8, 1, 1)), g.x)
    model = g.model(y)
    result = fused_file(model, tmp_path)
    assert result.after["Conv"] == 1
    assert result.verdict.ok


@pytest.mark.parametrize("opset", [13, 21])
def test_a_weight_in_integers_keeps_no_other_layer_from_folding(opset, tmp_path):
    g = Graph(2, 8, 6, 6, dtype=TensorProto.FLOAT)
    y = block(g, g.x)
    g.tensors.append(
        numpy_helper.from_array(g.rng.integers(-100, 100, (8, 8, 1, 1)).astype(np.int8), "whole")
    )
    weight = g.op("DequantizeLinear", "whole", g.weight(0.01))
    y = g.norm(g.op("Conv", y, weight))
    result = fused_file(g.model(block(g, y), opset=opset), tmp_path)

    assert result.after["Conv"] == 3
    assert result.after["BatchNormalization"] == 1
    assert {r.reason.kind for r in result.plan.refusals} >= {Why.QUANTISED_WEIGHT}
    assert 0 < result.verdict.control < 1e-3


def test_an_unknown_rank_keeps_no_other_layer_from_folding(tmp_path):
    """A Reshape to a shape that is computed from an input's numbers."""
    g = Graph("n", 8, "h", "w", dtype=TensorProto.FLOAT)
    y = block(g, g.x)
    size = g.op("Shape", g.op("NonZero", g.relu(y)))
    ones = g.op("Expand", g.integers(1), g.op("Slice", size, *map(g.integers, (0, 1, 0))))
    y = g.op("Reshape", y, g.op("Mul", g.op("Shape", y), ones))
    y = g.norm(g.relu(y))
    y = block(g, y)
    model = g.model(y)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    result = fused_file(model, tmp_path)
    assert result.verdict.ok
    assert result.after["Conv"] == 2


def test_an_input_without_a_rank_takes_that_of_the_layer_behind_it(tmp_path):
    g = Graph("n", 8, "h", "w", dtype=TensorProto.FLOAT)
    model = g.model(block(g, g.op("Sub", g.x, g.weight(0.5))))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    result = fused_file(model, tmp_path)
    assert result.verdict.ok
    assert result.after["Conv"] == 1


def test_an_input_without_a_rank_that_nothing_tells_is_asked_for(tmp_path):
    g = Graph("n", 8, "h", "w", dtype=TensorProto.FLOAT)
    y = g.op("Reshape", g.op("Sigmoid", g.x), g.integers(-1, 8, 6, 6))
    model = g.model(block(g, y))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match="shape"):
        fused_file(model, tmp_path)
    assert fused_file(model, tmp_path, input_shapes={g.x: (2, 288)}).verdict.ok


@pytest.mark.parametrize("kinds", [("Sub",), ("Div",), ("Add", "Sub", "Mul", "Relu")])
def test_noise_reaches_weights_behind_a_transposition_as_they_are(kinds, tmp_path):
    """Optimisation transposes these constants; noise in their place would be transposed, too."""
    g = Graph(1, 8, 8, 3, dtype=TensorProto.FLOAT)

    def conv(x, cin):
        channels_first = g.op("Transpose", x, perm=[0, 3, 1, 2])
        y = g.conv(channels_first, cin, 8, pads=[1, 1, 1, 1])
        return g.op("Transpose", y, perm=[0, 2, 3, 1])

    y = conv(g.x, 3)
    for kind in kinds:
        y = g.op(kind, y) if kind == "Relu" else g.op(kind, y, g.random(1, 1, 1, 8))
    model = g.model(conv(y, 8))

    result = fused_file(model, tmp_path)

    scale = max(np.abs(out).max() for out in run_in_ort(model, sample(model)))
    assert 0 < result.verdict.tolerance < 1e-4 * scale


def test_a_tolerance_that_would_hide_errors_is_no_success(tmp_path):
    """Large numbers that cancel: what is left is their rounding."""
    g = Graph(2, 8, 6, 6, dtype=TensorProto.FLOAT)
    y = g.norm(g.conv(g.x, pads=[1, 1, 1, 1]))
    large = g.op("Mul", y, g.weight(1e7))
    y = g.op("Sub", g.op("Add", large, g.random(8, 1, 1)), large)
    with pytest.raises(reparam.ReparamError):
        fused_file(g.model(y), tmp_path)
    assert not (tmp_path / "fused.onnx").exists()


def test_all_of_it_at_once():
    g = Graph("n", 8, "h", "w")
    model = with_listed_weights(g.model(block(g, block(g, g.x)), ir=8))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    fused = reparam.fuse(freeze_inputs(model))
    ordered = reparam.fuse(model)
    assert counts(fused) == {"Conv": 2, "Relu": 2}
    assert counts(ordered) == counts(model)
    x = sample(model)
    assert_equal(ordered, fused, x)
