"""Folding among the passes of onnx_ir and the rules of onnxscript, which run it."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter import RewritePass, rewrite
from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule

from onnx_graphs import Graph, assert_equal, counts, evaluate, largest_error, sample
from reparam.integrations.onnx_passes import FusePass, FuseRules


def branched() -> onnx.ModelProto:
    g = Graph()
    start = g.relu(g.x)
    wide = g.norm(g.conv(start, pads=[1, 1, 1, 1]))
    model = g.model(g.relu(g.op("Add", wide, g.norm(g.conv(start, size=1)))))
    helper.set_model_props(model, {"made by": "hand"})
    return model


def test_a_pass_among_others_folds_and_leaves_its_input_alone() -> None:
    proto = branched()
    model, folding = ir.from_proto(proto), FusePass()
    before = ir.to_proto(model)
    passes = ir.passes.PassManager([folding, RemoveUnusedNodesPass()], steps=3)
    result = passes(model)
    made = ir.to_proto(result.model)
    assert result.modified
    assert counts(made) == {"Relu": 2, "Conv": 1}
    assert_equal(proto, made)
    assert dict(result.model.metadata_props) == {"made by": "hand"}
    assert ir.to_proto(model) == before
    assert not folding(result.model).modified  # once more: nothing left to fold
    assert folding.plan is not None
    assert folding.plan.regions == ()


def test_weights_beside_the_file_are_read(tmp_path) -> None:
    proto = branched()
    ir.save(
        ir.from_proto(proto), tmp_path / "net.onnx", external_data="w.bin", size_threshold_bytes=0
    )
    model = ir.load(tmp_path / "net.onnx")
    made = ir.to_proto(FusePass()(model).model)
    assert_equal(proto, made)
    assert any(
        isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values()
    )


@pytest.mark.parametrize("typed", [False, True])
def test_a_rule_set_rewrites_in_place(typed) -> None:
    proto = branched()
    model = ir.from_proto(proto) if typed else proto
    made = rewrite(model, FuseRules())
    assert (made is model) is typed
    found = ir.to_proto(made) if typed else made
    assert counts(found) == {"Relu": 2, "Conv": 1}
    assert_equal(proto, found)
    assert not RewritePass(FuseRules())(ir.from_proto(found)).modified


def test_before_the_rules_of_others_more_folds_than_behind_them() -> None:
    """A norm folded into a convolution leaves a bias, which no padded kernel after it takes in."""
    g = Graph()
    narrow = g.norm(g.conv(g.relu(g.x), size=1))
    proto = g.model(g.relu(g.op("Add", narrow, g.norm(g.conv(g.x, pads=[1, 1, 1, 1])))))
    theirs = RewritePass([fuse_batchnorm_into_conv_rule])
    first = ir.passes.Sequential(FusePass(), theirs)(ir.from_proto(proto)).model
    assert_equal(proto, ir.to_proto(first))


def test_options_reach_the_plan_and_a_wrong_kernel_is_seen() -> None:
    proto = branched()
    none = FusePass(where=["Conv_1"])(ir.from_proto(proto))
    assert counts(ir.to_proto(none.model))["Add"] == 1
    made = ir.to_proto(FusePass()(ir.from_proto(proto)).model)
    (weight,) = (t for t in made.graph.initializer if len(t.dims) == 4)
    numbers = onnx.numpy_helper.to_array(weight).copy()
    numbers[0] *= 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(numbers, weight.name))
    x = sample(proto)
    assert largest_error(evaluate(proto, x), evaluate(made, x)) > 1e-4
