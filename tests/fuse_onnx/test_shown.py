"""What a comparison of ONNX files has to see before it says that they are equal."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_graphs import Graph
from reparam.errors import VerificationError
from reparam.fusing import fuse_onnx_file
from reparam.fusing.onnx_compare import compare_onnx_files
from reparam.verifying import NothingShownWarning


def net(*ends, scale=1.0, bad=None):
    """A convolution and a norm, and operations behind them; a weight may hold a bad number."""
    g = Graph(2, 8, 6, 6, dtype=TensorProto.FLOAT)
    kernel = g.rng.normal(size=(8, 8, 3, 3)) * scale
    if bad is not None:
        kernel[3, 2, 1, 1] = bad
    y = g.norm(g.op("Conv", g.x, g.weight(kernel, "kernel"), pads=[1, 1, 1, 1]))
    for kind, *constants in ends:
        y = g.op(kind, y, *(g.weight(c) for c in constants))
    return g.model(y)


def saved(model, path):
    onnx.save_model(model, path)
    return path


def changed(model, share=1.01):
    """The same model with another kernel."""
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    kernel = next(t for t in twin.graph.initializer if t.name == "kernel")
    value = (numpy_helper.to_array(kernel) * share).astype(np.float32)
    kernel.CopyFrom(numpy_helper.from_array(value, "kernel"))
    return twin


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_no_success_and_their_weight_is_named(bad, tmp_path):
    source = saved(net(bad=bad), tmp_path / "net.onnx")
    with pytest.raises(VerificationError, match="kernel"):
        fuse_onnx_file(source, tmp_path / "fused.onnx")
    assert not (tmp_path / "fused.onnx").exists()


def test_two_files_of_nan_are_not_equal(tmp_path):
    first = saved(net(bad=np.nan), tmp_path / "a.onnx")
    second = saved(changed(net(bad=np.nan)), tmp_path / "b.onnx")
    assert not compare_onnx_files(first, second, onnx.load(first)).ok


def test_an_output_that_never_changes_shows_nothing_and_that_is_said(tmp_path):
    model = net(("Mul", 0.0), ("Sigmoid",))
    first = saved(model, tmp_path / "a.onnx")
    second = saved(changed(model), tmp_path / "b.onnx")
    with pytest.warns(NothingShownWarning, match=r"a\.onnx"):
        compare_onnx_files(first, second, onnx.load(first))


@pytest.mark.parametrize(
    "ends",
    [
        [("Sub", 300.0), ("Sigmoid",)],
        [("Sub", 300.0), ("Relu",)],
        [("Sub", 300.0), ("Clip", 0.0, 6.0)],
        [("Add", 300.0), ("Tanh",), ("Relu",)],
    ],
    ids=lambda ends: "-".join(end[0] for end in ends),
)
def test_what_stands_before_a_saturated_function_is_compared(ends, tmp_path):
    model = net(*ends)
    first = saved(model, tmp_path / "a.onnx")
    assert compare_onnx_files(first, first, model).ok
    second = saved(changed(model), tmp_path / "b.onnx")
    assert not compare_onnx_files(first, second, model).ok


def several(model, *kinds):
    """Outputs of other scales and types beside the first."""
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    [first] = [value.name for value in twin.graph.output]
    for kind, to, attributes in kinds:
        name = f"also_{kind}"
        twin.graph.node.append(helper.make_node(kind, [first], [name], **attributes))
        twin.graph.output.append(helper.make_tensor_value_info(name, to, None))
    return twin


def test_each_output_is_judged_by_its_own_rounding(tmp_path):
    """The rounding of large numbers excuses no error of small ones."""
    g = Graph(2, 8, 6, 6, dtype=TensorProto.FLOAT)
    small = g.op("Conv", g.x, g.random(8, 8, 1, 1, name="kernel"))
    large = g.op("Mul", g.conv(g.x), g.weight(np.full(1, 1e7)))
    model = g.model(small, large)
    first = saved(model, tmp_path / "a.onnx")
    second = saved(changed(model, 1.001), tmp_path / "b.onnx")
    assert compare_onnx_files(first, first, model).ok
    assert not compare_onnx_files(first, second, model).ok


def test_integers_and_booleans_are_compared_for_equality(tmp_path):
    kinds = [
        ("ArgMax", TensorProto.INT64, {"axis": 1}),
        ("Sign", TensorProto.FLOAT, {}),
        ("Cast", TensorProto.BOOL, {"to": TensorProto.BOOL}),
    ]
    model = several(net(), *kinds)
    result = fuse_onnx_file(saved(model, tmp_path / "net.onnx"), tmp_path / "fused.onnx")
    assert result.verdict.ok
    assert result.after["Conv"] == 1
    assert "BatchNormalization" not in result.after


def test_only_integers_are_compared_too(tmp_path):
    g = Graph(2, 8, 6, 6, dtype=TensorProto.FLOAT)
    y = g.op("ArgMax", g.op("Conv", g.x, g.random(8, 8, 1, 1, name="kernel")), axis=1)
    model = g.model(y)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    first = saved(model, tmp_path / "a.onnx")
    second = saved(changed(model, -1.0), tmp_path / "b.onnx")
    assert compare_onnx_files(first, first, model).ok
    assert not compare_onnx_files(first, second, model).ok
