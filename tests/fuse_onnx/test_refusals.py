"""What is left as it is, with the reason, and what cannot be read at all."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import reparam
from onnx_graphs import Graph, assert_equal, counts
from reparam import Why
from reparam.errors import InputError, UnsupportedModelError


def bias_through_padding():
    g = Graph()
    return g.model(g.conv(g.conv(g.x, size=1, bias=True), pads=[1, 1, 1, 1]))


def padded_second_kernel():
    g = Graph()
    return g.model(g.conv(g.conv(g.x, pads=[1, 1, 1, 1]), pads=[1, 1, 1, 1]))


def uncounted_padding():
    g = Graph()
    pool = g.op("AveragePool", g.x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return g.model(g.op("Add", pool, g.conv(g.x, pads=[1, 1, 1, 1])))


def negative_pads():
    g = Graph()
    cropped = g.op("Pad", g.x, g.integers(0, 0, -1, 0, 0, 0, -1, 0))
    return g.model(g.conv(cropped, size=1))


def ceil_mode():
    g = Graph()
    pool = g.op("AveragePool", g.x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    return g.model(g.conv(pool, size=1))


def strided_auto_pad_pool():
    g = Graph()
    pool = g.op(
        "AveragePool", g.x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER",
        count_include_pad=1,
    )  # fmt: skip
    return g.model(g.conv(pool, size=1))


def training_norm():
    g = Graph()
    y = g.conv(g.x)
    numbers = [g.random(8), g.random(8), g.random(8), g.weight(np.ones(8))]
    first, *_ = g.op("BatchNormalization", y, *numbers, outputs=3, training_mode=1)
    return g.model(first)


def training_dropout():
    g = Graph()
    flag = "flag"
    g.tensors.append(helper.make_tensor(flag, TensorProto.BOOL, [], [True]))
    y = g.op("Dropout", g.conv(g.x), g.weight(0.5), flag)
    return g.model(g.norm(y))


def no_scale():
    g = Graph()
    y = g.conv(g.x)
    numbers = [g.random(8) for _ in range(3)] + [g.weight(np.zeros(8))]
    return g.model(g.op("BatchNormalization", y, *numbers, epsilon=0.0))


def not_finite():
    g = Graph()
    weight = g.weight(np.full((8, 8, 1, 1), np.inf))
    return g.model(g.norm(g.op("Conv", g.x, weight)))


def weight_from_input():
    g = Graph()
    pooled = g.op("Reshape", g.op("GlobalAveragePool", g.x), g.integers(2, 8, 1, 1))
    return g.model(g.norm(g.op("Conv", g.x, pooled), 2))


def tied_weights():
    g = Graph()
    weight = g.random(8, 8, 3, 3)
    first = g.norm(g.op("Conv", g.x, weight))
    return g.model(g.relu(first), g.relu(g.norm(g.op("Conv", g.relu(g.x), weight))))


def too_dear():
    g = Graph()
    return g.model(g.conv(g.conv(g.x, cout=2, size=1), cin=2, cout=32))


def two_readers():
    g = Graph()
    y = g.conv(g.x)
    return g.model(g.op("Mul", g.norm(y), g.op("Sigmoid", y)))


def hosted_branches(size):
    g = Graph()
    same = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    other = g.op("Identity", g.conv(g.x, size=size, **same))
    return g.model(g.op("Add", g.conv(g.x, **same), other))


def quantised():
    g = Graph(dtype=TensorProto.FLOAT)
    g.tensors.append(helper.make_tensor("zero", TensorProto.UINT8, [], [128]))
    y = g.op("QuantizeLinear", g.x, g.weight(0.1), "zero")
    y = g.op("DequantizeLinear", y, g.weight(0.1), "zero")
    return g.model(g.norm(g.conv(y)))


REFUSED = {
    "a bias behind padding": (bias_through_padding, Why.BIAS_THROUGH_PADDING),
    "a padded second kernel": (padded_second_kernel, Why.PADDED_SECOND_KERNEL),
    "uncounted padding": (uncounted_padding, Why.UNCOUNTED_PADDING),
    "negative pads": (negative_pads, Why.NEGATIVE_PADDING),
    "ceil_mode": (ceil_mode, Why.CEIL_MODE),
    "a pool with auto_pad": (strided_auto_pad_pool, Why.AUTO_PAD),
    "a norm in training mode": (training_norm, Why.NORM_IN_TRAINING),
    "dropout in training mode": (training_dropout, Why.DROPOUT_IN_TRAINING),
    "a norm without a scale": (no_scale, Why.NO_SCALE),
    "weights that are not finite": (not_finite, Why.NOT_FINITE),
    "a weight that is not constant": (weight_from_input, Why.NOT_CONSTANT),
    "a tied weight": (tied_weights, Why.USED_ELSEWHERE),
    "a dearer layer": (too_dear, Why.MORE_WORK),
    "a value with two readers": (two_readers, Why.ALSO_READ),
    "a quantised graph": (quantised, Why.QUANTISED),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exact_or_does_not_pay_is_left_with_its_reason(case):
    make, reason = REFUSED[case]
    model = make()

    plan = reparam.plan(model)

    assert not plan.regions
    assert reason in {r.reason.kind for r in plan.refusals}, str(plan)
    fused = plan.apply()
    assert fused.graph == model.graph
    assert fused is not model


def test_branches_whose_padding_depends_on_the_size_are_left():
    model = hosted_branches(1)
    assert not reparam.plan(model).regions


def test_branches_whose_padding_depends_on_the_size_alike_fold():
    model = hosted_branches(3)
    fused = reparam.fuse(model)
    assert counts(fused) == {"Conv": 1}
    assert_equal(model, fused)


def test_control_flow_is_left_and_what_it_captures_is_kept():
    g = Graph(dtype=TensorProto.FLOAT)
    before = g.norm(g.conv(g.x))
    inner = helper.make_graph(
        [helper.make_node("Conv", [before, g.random(8, 8, 1, 1)], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", [before], ["other"])],
        "branch",
        [],
        [helper.make_tensor_value_info("other", TensorProto.FLOAT, None)],
    )
    g.tensors.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
    out = g.op("If", "flag", then_branch=inner, else_branch=other)
    model = g.model(g.norm(g.norm(out)))

    plan = reparam.plan(model)
    fused = plan.apply()

    assert [r.what for r in plan.regions] == ["3x3 conv + batch norm", "2 batch norms"]
    assert any(r.reason.kind is Why.INNER_GRAPH and r.what == "If" for r in plan.refusals)
    assert before in fused.graph.node[0].output
    onnx.checker.check_model(fused, full_check=True)


def test_operations_of_functions_are_left():
    g = Graph()
    body = helper.make_function(
        "mine", "block", ["x", "w"], ["y"], [helper.make_node("Conv", ["x", "w"], ["y"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    weight = g.random(8, 8, 1, 1)
    g.nodes.append(helper.make_node("block", [g.x, weight], ["y"], name="call", domain="mine"))
    model = g.model(g.norm("y"), functions=(body,))

    plan = reparam.plan(model)

    assert any(r.where == "call" and r.reason.kind is Why.INNER_GRAPH for r in plan.refusals)
    assert counts(plan.apply()) == counts(model)


def gelu(g, x):
    erf = g.op("Erf", g.op("Div", x, g.weight(2.0**0.5)))
    return g.op("Mul", g.op("Mul", x, g.op("Add", erf, g.weight(1.0))), g.weight(0.5))


def hard_swish(g, x):
    gate = g.op("Clip", g.op("Add", x, g.weight(3.0)), g.weight(0.0), g.weight(6.0))
    return g.op("Div", g.op("Mul", x, gate), g.weight([6.0]))


@pytest.mark.parametrize("activation", [gelu, hard_swish])
def test_activations_that_are_spelt_out_stay_whole(activation):
    """Engines know them by all of their steps; their last factor could go into the next layer."""
    g = Graph()
    y = activation(g, g.norm(g.conv(g.x)))
    model = g.model(g.relu(g.norm(g.conv(y))))

    fused = reparam.fuse(model)

    assert counts(fused) == {k: n for k, n in counts(model).items() if k != "BatchNormalization"}
    assert_equal(model, fused)


@pytest.mark.parametrize("kind", ["Mul", "Add"])
@pytest.mark.parametrize("ones", [True, False])
def test_a_constant_that_adds_a_dimension_is_left(kind, ones):
    g = Graph(2, 8, 7)
    y = g.conv(g.x, dims=1)
    neutral = 1.0 if kind == "Mul" else 0.0
    constant = g.weight(np.full((1, 1, 1, 1), neutral)) if ones else g.random(1, 1, 8, 1)
    model = g.model(g.relu(g.op(kind, y, constant)))

    fused = reparam.fuse(model)

    assert counts(fused) == counts(model)
    assert_equal(model, fused)


def test_a_constant_that_makes_a_row_of_a_vector_is_left():
    g = Graph(8)
    y = g.op("Add", g.op("MatMul", g.x, g.random(8, 5)), g.random(1, 5))
    model = g.model(g.op("Mul", y, g.random(5)))

    assert_equal(model, reparam.fuse(model), np.arange(8.0))


def test_sparse_constants_are_left():
    g = Graph(dtype=TensorProto.FLOAT)
    y = g.norm(g.conv(g.x))
    model = g.model(g.op("Mul", y, y))
    indices = helper.make_tensor("where", TensorProto.INT64, [1], [3])
    numbers = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [2.0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(numbers, indices, [8]))
    product = model.graph.node[-1]
    product.input[1] = "sparse"

    fused = reparam.fuse(model)

    assert counts(fused) == {"Conv": 1, "Mul": 1}
    assert fused.graph.sparse_initializer == model.graph.sparse_initializer


def test_an_old_opset_is_left():
    g = Graph(dtype=TensorProto.FLOAT)
    model = g.model(g.relu(g.conv(g.x)), opset=6, ir=3)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )

    [refusal] = reparam.plan(model).refusals

    assert refusal.reason.kind is Why.OLD_OPSET


def test_an_overridable_initializer_is_not_constant():
    """From IR version 4 on, an initializer that is an input as well is only a default."""
    g = Graph()
    weight = g.random(8, 8, 1, 1)
    model = g.model(g.norm(g.op("Conv", g.x, weight)))
    model.graph.input.append(
        helper.make_tensor_value_info(weight, TensorProto.DOUBLE, [8, 8, 1, 1])
    )

    assert not reparam.plan(model).regions


def test_a_fold_too_large_for_its_type_is_left():
    g = Graph(2, 8, 5, 5, dtype=TensorProto.FLOAT16)
    y = g.op("Conv", g.x, g.weight(np.full((8, 8, 1, 1), 6e4)))
    numbers = [g.weight(np.full(8, 4.0)), g.random(8), g.random(8), g.weight(np.ones(8))]
    model = g.model(g.op("BatchNormalization", y, *numbers))

    with pytest.warns(reparam.FoldWarning, match="float16"):
        fused = reparam.fuse(model)

    assert fused.graph == model.graph


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: setattr(m, "ir_version", 0), "no IR version"),
        (lambda m: setattr(m, "ir_version", 99), "IR version 99"),
        (lambda m: m.ClearField("opset_import"), "which opset"),
        (lambda m: setattr(m.opset_import[0], "version", 999), "opset 999"),
        (lambda m: m.graph.ClearField("output"), "no outputs"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nothing"), "onnx.checker says"),
    ],
)
def test_a_model_that_cannot_be_read_is_an_input_error(spoil, words):
    g = Graph()
    model = g.model(g.norm(g.conv(g.x)))
    spoil(model)

    with pytest.raises(InputError, match=words):
        reparam.plan(model)


def test_a_graph_without_its_model_is_refused():
    g = Graph()

    with pytest.raises(UnsupportedModelError, match="GraphProto"):
        reparam.plan(g.model(g.conv(g.x)).graph)


def test_weights_in_a_file_that_was_not_read_are_an_input_error(tmp_path):
    g = Graph()
    model = g.model(g.norm(g.conv(g.x)))
    path = tmp_path / "net.onnx"
    onnx.save_model(copy.deepcopy(model), path, save_as_external_data=True, size_threshold=0)

    with pytest.raises(InputError, match=r"onnx\.load"):
        reparam.plan(onnx.load(path, load_external_data=False))
    assert_equal(model, reparam.fuse(onnx.load(path)))


def test_onnx_is_not_imported_for_a_torch_module():
    code = (
        "import sys, torch, reparam;"
        "reparam.fuse(torch.nn.Sequential(torch.nn.Linear(2, 2)).eval());"
        "assert not {'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
