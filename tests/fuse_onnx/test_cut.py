"""A graph is cut down to the outputs that are wanted, and what is fixed is computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import reparam
from onnx_graphs import Graph, counts
from reparam.errors import InputError
from reparam.fusing import fuse_onnx_file

RTOL = 1e-12


def run(model: onnx.ModelProto, **feeds: Any) -> dict[str, Any]:
    names = [value.name for value in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(names, feeds), strict=True))


def close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=RTOL, atol=RTOL * np.abs(value).max())


def image(seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(2, 8, 7, 6))


def with_input(
    model: onnx.ModelProto, name: str, shape: list[int], dtype: int = TensorProto.DOUBLE
) -> onnx.ModelProto:
    model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    return model


def heads(dtype: int = TensorProto.DOUBLE) -> onnx.ModelProto:
    """A body with two heads of two layers; the outputs are the second one's, both, the first's."""
    g = Graph("n", 8, "h", "w", dtype=dtype)
    body = g.relu(g.norm(g.conv(g.x, pads=[1, 1, 1, 1])))
    ends = [g.norm(g.conv(g.relu(g.norm(g.conv(body)))), 8) for _ in range(2)]
    return g.model(ends[1], g.op("Add", *ends), ends[0])


def film(dtype: int = TensorProto.DOUBLE) -> onnx.ModelProto:
    """A convolution whose scale and shift are computed from a second input."""
    g = Graph("n", 8, "h", "w", dtype=dtype)
    both = g.op("Gemm", "task", g.random(4, 16), g.random(16))
    both = g.op("Reshape", both, g.integers(1, 16, 1, 1))
    scale, shift = g.op("Split", both, g.integers(8, 8), outputs=2, axis=1)
    one = g.op("Mul", g.norm(g.conv(g.x, pads=[1, 1, 1, 1])), scale)
    out = g.relu(g.op("Add", one, shift))
    return with_input(g.model(out), "task", [1, 4], dtype)


@pytest.mark.parametrize(
    ("outputs", "kept", "convolutions"),
    [(0, [0], 3), (-1, [2], 3), ([2, 0], [2, 0], 5), (1, [1], 5)],
)
@pytest.mark.parametrize("by_name", [True, False])
def test_only_what_the_wanted_outputs_need_is_left(outputs, kept, convolutions, by_name):
    model = heads()
    before = model.SerializeToString()
    names = [model.graph.output[k].name for k in kept]
    wanted = (names if isinstance(outputs, list) else names[0]) if by_name else outputs
    plan = reparam.plan(model, outputs=wanted)
    cut = plan.apply()
    assert model.SerializeToString() == before
    assert [value.name for value in cut.graph.output] == names
    assert counts(cut)["Conv"] == convolutions
    assert "BatchNormalization" not in counts(cut)
    every = run(model, image=image())
    close(run(cut, image=image()), {name: every[name] for name in names})
    read = {name for node in cut.graph.node for name in node.input}
    assert {tensor.name for tensor in cut.graph.initializer} <= read
    assert any("no output needs" in note for note in plan.notes) == (outputs != 1)


@pytest.mark.parametrize("make", [torch.from_numpy, np.asarray, np.ndarray.tolist])
def test_scale_and_shift_of_a_fixed_task_fold_into_the_convolution(make):
    model, task = film(), np.random.default_rng(5).normal(size=(1, 4))
    before = model.SerializeToString()
    cut = reparam.fuse(model, fixed={"task": make(task)})
    assert model.SerializeToString() == before
    assert counts(cut) == {"Conv": 1, "Relu": 1}
    assert [value.name for value in cut.graph.input] == ["image"]
    close(run(cut, image=image()), run(model, image=image(), task=task))
    assert sum(np.prod(t.dims) for t in cut.graph.initializer) == 8 * 8 * 9 + 8


def test_what_follows_is_stored_where_nothing_folds():
    g = Graph("n", 8, "h", "w")
    scale = g.op("Sigmoid", g.op("MatMul", "task", g.random(4, 8)))
    scale = g.op("Reshape", scale, g.integers(1, 8, 1, 1))
    model = with_input(g.model(g.op("Mul", g.relu(g.x), scale)), "task", [1, 4])
    task = np.random.default_rng(5).normal(size=(1, 4))
    cut = reparam.fuse(model, fixed={"task": task})
    assert counts(cut) == {"Relu": 1, "Mul": 1}
    assert [list(t.dims) for t in cut.graph.initializer] == [[1, 8, 1, 1]]
    close(run(cut, image=image()), run(model, image=image(), task=task))


def test_a_graph_inside_of_an_operation_reads_what_it_needs():
    g = Graph("n", 8, "h", "w")
    one, two, three = (g.norm(g.conv(g.x)) for _ in range(3))
    body = helper.make_graph(
        [helper.make_node("Add", [one, "offset"], ["inner"])], "body", [],
        [helper.make_tensor_value_info("inner", TensorProto.DOUBLE, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", [two], ["outer"])], "other", [],
        [helper.make_tensor_value_info("outer", TensorProto.DOUBLE, None)],
    )  # fmt: skip
    g.tensors.append(onnx.numpy_helper.from_array(np.array(True), "which"))
    g.op("Reshape", g.op("Neg", "task"), g.integers(1, 8, 1, 1))
    g.nodes[-1].output[0] = "offset"
    chosen = g.op("If", "which", then_branch=body, else_branch=other)
    model = with_input(g.model(chosen, three), "task", [8])
    task = np.random.default_rng(5).normal(size=8)
    cut = reparam.fuse(model, outputs=0, fixed={"task": task})
    assert counts(cut)["Conv"] == 2
    wanted = run(model, image=image(), task=task)
    close(run(cut, image=image()), {k: v for k, v in wanted.items() if k == chosen})


def test_old_files_list_their_weights_as_inputs():
    model, task = film(), np.random.default_rng(5).normal(size=(1, 4))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    cut = reparam.fuse(model, fixed={"task": task})
    assert counts(cut) == {"Conv": 1, "Relu": 1}
    close(run(cut, image=image()), run(model, image=image(), task=task))
    assert len(cut.graph.input) == 1 + len(cut.graph.initializer)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"outputs": "v99"}, "v99"),
        ({"outputs": 7}, "7"),
        ({"outputs": []}, "list"),
        ({"fixed": {"tsk": 1}}, "near it: task"),
        ({"fixed": {"task": np.zeros((2, 4))}}, "1x4"),
        ({"fixed": {"task": np.zeros(4)}}, "1x4"),
        ({"fixed": {"task": np.zeros((1, 4), dtype=complex)}}, "complex"),
        ({"fixed": {"task": np.zeros((1, 4)), "image": image()}}, "every input"),
        ({"fixed": {"w0": np.zeros((4, 16))}}, "w0"),
    ],
)
def test_what_a_graph_has_not_is_an_error(asked, told):
    with pytest.raises(InputError, match=told):
        reparam.plan(film(), **asked)


@pytest.mark.parametrize("check", [True, False])
def test_a_file_is_compared_with_what_was_asked_of_the_original(tmp_path, check):
    pytest.importorskip("onnxruntime")
    model, task = film(TensorProto.FLOAT), np.random.default_rng(5).normal(size=(1, 4))
    onnx.save(model, tmp_path / "film.onnx")
    fused = fuse_onnx_file(
        tmp_path / "film.onnx", tmp_path / "out.onnx", check=check, fixed={"task": task},
        input_shapes={"image": (1, 8, 9, 9)},
    )  # fmt: skip
    assert (fused.verdict is not None and fused.verdict.ok) == check
    assert fused.after == {"Conv": 1, "Relu": 1}
    onnx.save(heads(TensorProto.FLOAT), tmp_path / "heads.onnx")
    fused = fuse_onnx_file(tmp_path / "heads.onnx", tmp_path / "two.onnx", outputs=[0, 2])
    assert fused.verdict is not None
    assert fused.verdict.ok
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "film.onnx", "heads.onnx", "out.onnx", "two.onnx",
    ]  # fmt: skip


def test_another_value_is_found():
    model, task = film(), np.random.default_rng(5).normal(size=(1, 4))
    cut = reparam.fuse(model, fixed={"task": task})
    with pytest.raises(AssertionError):
        close(run(cut, image=image()), run(model, image=image(), task=task * (1 + 1e-9)))
