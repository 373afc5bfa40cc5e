"""Every operation that folds: the fused model has the operations it should, and is equal."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import reparam
from onnx_graphs import Graph, assert_equal, counts, evaluate, largest_error, run_in_ort, sample


def repvgg(**geometry):
    """Three branches as in RepVGG."""
    g = Graph()
    pads = geometry.pop("pads", [1, 1, 1, 1])
    group = geometry.get("group", 1)
    strides = geometry.get("strides", [1, 1])
    terms = [
        g.norm(g.conv(g.x, pads=pads, **geometry)),
        g.norm(g.conv(g.x, size=1, group=group, strides=strides)),
    ]
    if strides == [1, 1]:
        terms.append(g.norm(g.x))
    total = terms[0]
    for term in terms[1:]:
        total = g.op("Add", total, term)
    return g.model(g.relu(total))


def conv_norm(**attributes):
    g = Graph()
    return g.model(g.relu(g.norm(g.conv(g.x, bias=True, **attributes))))


def pooled_branch():
    g = Graph()
    pool = g.op("AveragePool", g.conv(g.x, size=1), kernel_shape=[3, 3], strides=[2, 2])
    direct = g.conv(g.x, strides=[2, 2])
    return g.model(g.op("Sum", g.norm(pool), g.norm(direct), g.conv(g.x, strides=[2, 2])))


def counted_padding_branch():
    g = Graph()
    pool = g.op("AveragePool", g.x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    return g.model(g.op("Add", g.norm(pool), g.conv(g.x, pads=[1, 1, 1, 1])))


def constants():
    g = Graph()
    y = g.op("Mul", g.conv(g.x, bias=True), g.random(1, 8, 1, 1))
    y = g.op("Add", g.random(8, 1, 1), y)
    y = g.op("Div", g.op("Neg", y), g.weight(3.0))
    y = g.op("Sub", g.weight([2.5]), g.op("Sub", y, g.weight(0.5)))
    return g.model(g.relu(y))


def identities():
    g = Graph()
    y = g.op("Identity", g.conv(g.x))
    y = g.op("Dropout", y)
    y = g.op("Cast", g.op("Mul", y, g.weight(1.0)), to=TensorProto.DOUBLE)
    return g.model(g.relu(g.norm(g.op("Add", y, g.weight(0.0)))))


def gemm(**attributes):
    g = Graph("n", 8)
    shape = (5, 8) if attributes.get("transB") else (8, 5)
    y = g.op("Gemm", g.x, g.random(*shape), g.random(5), **attributes)
    return g.model(g.relu(g.norm(y, 5)))


def matmul(rank):
    g = Graph("n", 8) if rank == 2 else Graph("n", 5, 8)
    y = g.op("Add", g.op("MatMul", g.x, g.random(8, 6)), g.random(6))
    y = g.op("Mul", y, g.random(6))
    return g.model(g.relu(y))


def bare_matmul():
    g = Graph("n", 5, 8)
    return g.model(g.op("Mul", g.op("MatMul", g.x, g.random(8, 6)), g.random(1, 1, 6)))


def bare_matmul_of_old():
    """Before opset 11, Gemm cannot do without an addend."""
    g = Graph("n", 8)
    y = g.op("Mul", g.op("MatMul", g.x, g.random(8, 6)), g.random(6))
    return g.model(g.relu(y), opset=9)


def gemm_of_old_with_nothing_to_add():
    g = Graph("n", 8)
    y = g.op("Gemm", g.x, g.random(8, 6), g.weight(np.zeros(6)))
    return g.model(g.relu(g.op("Mul", y, g.random(6))), opset=9)


def shared_steps_to_a_weight():
    """Each step reads the one before twice: counting paths instead of steps would never end."""
    g = Graph()
    w = g.random(8, 8, 3, 3)
    for _ in range(60):
        w = g.op("Mul", g.op("Add", w, w), g.weight(0.5))
    return g.model(g.norm(g.op("Conv", g.x, w)))


def padded_by_node():
    g = Graph()
    pads = g.integers(0, 0, 1, 2, 0, 0, 2, 1)
    return g.model(g.norm(g.conv(g.op("Pad", g.x, pads))))


def cropped():
    g = Graph()
    crop = g.op("Slice", g.x, g.integers(1, 1), g.integers(-1, -1), g.integers(2, 3))
    return g.model(g.op("Add", g.conv(crop, size=1), g.norm(g.conv(g.x))))


def norm_behind_concat():
    g = Graph()
    joined = g.op("Concat", g.conv(g.x, cout=3), g.conv(g.x, cout=5, group=1), axis=1)
    return g.model(g.relu(g.norm(joined)))


def norm_before_several_readers():
    g = Graph()
    y = g.norm(g.relu(g.x))
    return g.model(g.relu(g.conv(y, size=1)), g.relu(g.conv(y, size=3)))


def scale_behind_transpose():
    g = Graph()
    moved = g.op("Transpose", g.conv(g.x), perm=[0, 2, 3, 1])
    return g.model(g.op("Mul", moved, g.random(8)))


def scale_behind_reshape():
    g = Graph()
    flat = g.op("Reshape", g.conv(g.x), g.integers(0, 8, -1))
    return g.model(g.relu(g.op("Add", flat, g.random(8, 1))))


def norm_behind_pool():
    g = Graph()
    pooled = g.op("GlobalAveragePool", g.conv(g.x, bias=True))
    return g.model(g.relu(g.norm(g.op("Flatten", pooled))))


def norm_behind_mean():
    g = Graph()
    return g.model(g.relu(g.norm(g.op("ReduceMean", g.conv(g.x), axes=[2, 3], keepdims=0))))


def transposed(**attributes):
    g = Graph()
    group = attributes.get("group", 1)
    y = g.op("ConvTranspose", g.x, g.random(8, 6 // group, 3, 2), g.random(6), **attributes)
    return g.model(g.relu(g.norm(y, 6)))


def transposed_without_bias():
    g = Graph()
    y = g.op("ConvTranspose", g.x, g.random(8, 6, 2, 2), strides=[2, 2])
    return g.model(g.norm(y, 6))


def reflected():
    g = Graph()
    pads = [g.integers(0, 0, 1, 1, 0, 0, 1, 1) for _ in range(2)]
    first = g.conv(g.op("Pad", g.x, pads[0], mode="reflect"))
    second = g.conv(g.op("Pad", g.x, pads[1], mode="reflect"))
    total = g.op("Add", g.op("Add", g.norm(first), g.norm(second)), g.norm(g.conv(g.x, size=1)))
    return g.model(g.relu(total))


def padded_and_passed_on():
    g = Graph()
    padded = g.op("Pad", g.x, g.integers(0, 0, 1, 1, 0, 0, 1, 1), mode="edge")
    total = g.op("Add", g.op("Identity", padded), g.conv(padded, size=1))
    return g.model(g.op("Sub", total, g.norm(padded)))


def computed_weight():
    """Weight standardisation, written out."""
    g = Graph()
    w = g.op("Identity", g.random(8, 8, 3, 3))
    mean = g.op("ReduceMean", w, axes=[1, 2, 3])
    w = g.op("Mul", g.op("Sub", w, mean), g.op("Exp", g.random(8, 1, 1, 1)))
    return g.model(g.norm(g.op("Conv", g.x, w)))


def one_dimensional():
    g = Graph("n", 8, "h")
    first = g.conv(g.x, dims=1, pads=[2, 2], dilations=[2])
    return g.model(g.op("Add", g.norm(first), g.norm(g.conv(g.x, size=1, dims=1))))


def three_dimensional():
    g = Graph("n", 4, 5, 6, 7)
    first = g.conv(g.x, 4, 4, dims=3, pads=[1] * 6)
    second = g.conv(g.x, 4, 4, size=1, dims=3)
    return g.model(g.op("Add", g.norm(first, 4), g.norm(second, 4)))


def chain():
    g = Graph()
    return g.model(g.conv(g.conv(g.x, cout=16, size=1), cin=16, cout=4))


CASES = {
    "conv and norm": (conv_norm(), {"Conv": 1, "Relu": 1}),
    "repvgg": (repvgg(), {"Conv": 1, "Relu": 1}),
    "repvgg, strided": (repvgg(strides=[2, 2]), {"Conv": 1, "Relu": 1}),
    "repvgg, grouped": (repvgg(group=4), {"Conv": 1, "Relu": 1}),
    "repvgg, unequal pads": (repvgg(pads=[0, 2, 2, 0]), {"Conv": 1, "Relu": 1}),
    "unequal pads": (conv_norm(pads=[0, 2, 1, 1], dilations=[2, 1]), {"Conv": 1, "Relu": 1}),
    "auto_pad SAME_UPPER": (conv_norm(auto_pad="SAME_UPPER", size=2), {"Conv": 1, "Relu": 1}),
    "auto_pad SAME_LOWER": (conv_norm(auto_pad="SAME_LOWER", size=2), {"Conv": 1, "Relu": 1}),
    "auto_pad VALID": (conv_norm(auto_pad="VALID"), {"Conv": 1, "Relu": 1}),
    "auto_pad, strided": (conv_norm(auto_pad="SAME_UPPER", strides=[2, 2]), {"Conv": 1, "Relu": 1}),
    "average pool": (pooled_branch(), {"Conv": 1}),
    "average pool that counts its padding": (counted_padding_branch(), {"Conv": 1}),
    "constants": (constants(), {"Conv": 1, "Relu": 1}),
    "identities": (identities(), {"Conv": 1, "Relu": 1}),
    "Gemm": (gemm(), {"Gemm": 1, "Relu": 1}),
    "Gemm with factors": (gemm(transB=1, alpha=0.5, beta=3.0), {"Gemm": 1, "Relu": 1}),
    "MatMul of rank 2": (matmul(2), {"Gemm": 1, "Relu": 1}),
    "MatMul of rank 3": (matmul(3), {"MatMul": 1, "Add": 1, "Relu": 1}),
    "MatMul without bias": (bare_matmul(), {"MatMul": 1}),
    "MatMul without bias, old": (bare_matmul_of_old(), {"MatMul": 1, "Relu": 1}),
    "Gemm without bias, old": (gemm_of_old_with_nothing_to_add(), {"MatMul": 1, "Relu": 1}),
    "weight of shared steps": (shared_steps_to_a_weight(), {"Conv": 1}),
    "Pad": (padded_by_node(), {"Conv": 1}),
    "Slice": (cropped(), {"Conv": 1}),
    "Concat": (norm_behind_concat(), {"Conv": 2, "Concat": 1, "Relu": 1}),
    "several readers": (norm_before_several_readers(), {"Conv": 2, "Relu": 3}),
    "Transpose": (scale_behind_transpose(), {"Conv": 1, "Identity": 1, "Transpose": 1}),
    "Reshape": (scale_behind_reshape(), {"Conv": 1, "Reshape": 1, "Relu": 1}),
    "global pool": (
        norm_behind_pool(),
        {"Conv": 1, "GlobalAveragePool": 1, "Flatten": 1, "Relu": 1},
    ),
    "mean": (norm_behind_mean(), {"Conv": 1, "ReduceMean": 1, "Relu": 1}),
    "ConvTranspose": (transposed(strides=[2, 2]), {"ConvTranspose": 1, "Relu": 1}),
    "ConvTranspose without bias": (transposed_without_bias(), {"ConvTranspose": 1}),
    "reflected padding": (reflected(), {"Pad": 1, "Conv": 1, "Relu": 1}),
    "padding that is passed on": (padded_and_passed_on(), {"Pad": 1, "Conv": 1}),
    "computed weight": (computed_weight(), {"Conv": 1}),
    "one dimension": (one_dimensional(), {"Conv": 1}),
    "three dimensions": (three_dimensional(), {"Conv": 1}),
    "chain": (chain(), {"Conv": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operation_folds_and_the_model_stays_equal(case):
    model, expected = CASES[case]
    before = model.SerializeToString()

    fused = reparam.fuse(model)

    assert counts(fused) == expected
    assert_equal(model, fused)
    assert model.SerializeToString() == before


def test_a_grouped_transposed_convolution_folds():
    """Compared in ONNX Runtime: the reference evaluator of onnx mixes the groups up."""
    g = Graph(2, 8, 7, 9, dtype=TensorProto.FLOAT)
    turned = {"group": 2, "strides": [1, 2], "pads": [1, 0, 0, 1], "output_padding": [0, 1]}
    y = g.op("ConvTranspose", g.x, g.random(8, 3, 3, 2), g.random(6), **turned)
    model = g.model(g.relu(g.norm(y, 6)))

    fused = reparam.fuse(model)

    assert counts(fused) == {"ConvTranspose": 1, "Relu": 1}
    x = sample(model)
    # float32 rounding of sums of some dozen terms
    assert largest_error(run_in_ort(model, x), run_in_ort(fused, x)) <= 1e-5


def test_the_comparison_notices_a_perturbed_kernel():
    model, _ = CASES["repvgg"]
    fused = reparam.fuse(model)
    tensor = max(fused.graph.initializer, key=lambda t: len(t.dims))
    weight = numpy_helper.to_array(tensor).copy()
    weight[0, 0, 0, 0] *= 1 + 1e-9
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))

    with pytest.raises(AssertionError):
        assert_equal(model, fused)


def test_a_fold_that_disagrees_with_the_reference_is_left(monkeypatch):
    """With a rule that reads eps wrongly, the float64 check of the region keeps the fold out."""
    from reparam import algebra

    right = algebra.batch_norm
    monkeypatch.setattr(
        "reparam.algebra.batch_norm", lambda *a, eps, **k: right(*a, eps=eps * 1.001, **k)
    )
    model, _ = CASES["conv and norm"]

    with pytest.warns(reparam.FoldWarning, match="differs by"):
        fused = reparam.fuse(model)

    assert counts(fused) == counts(model)
    assert_equal(model, fused)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(TensorProto.FLOAT16, 2e-2), (TensorProto.FLOAT, 1e-5)]
)
def test_numbers_keep_their_type(kind, tolerance):
    g = Graph(2, 8, 9, 9, dtype=kind)
    model = g.model(g.norm(g.conv(g.x, pads=[1, 1, 1, 1])))

    fused = reparam.fuse(model)

    assert counts(fused) == {"Conv": 1}
    assert {t.data_type for t in fused.graph.initializer} == {kind}
    x = sample(model)
    # The fused model rounds once where the original rounds after each operation.
    assert largest_error(evaluate(model, x), evaluate(fused, x)) <= tolerance


def test_each_folded_number_is_the_correctly_rounded_one():
    g = Graph(dtype=TensorProto.FLOAT)
    model = g.model(g.norm(g.conv(g.x)))
    stored = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    weight, gamma, _, _, var = (stored[f"w{k}"] for k in range(5))
    eps = float(np.float32(model.graph.node[1].attribute[0].f))
    exact = weight * (gamma / np.sqrt(var + eps))[:, None, None, None]

    fused = reparam.fuse(model)

    kernel = next(numpy_helper.to_array(t) for t in fused.graph.initializer if len(t.dims) == 4)
    np.testing.assert_array_equal(kernel, exact.astype(np.float32))


def test_bfloat16_is_read_and_written():
    g = Graph(2, 8, 9, 9, dtype=TensorProto.FLOAT)
    model = g.model(g.norm(g.conv(g.x)), opset=22, ir=10)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        rounded = (array.view(np.uint32) >> 16).astype(np.uint16)
        tensor.CopyFrom(
            helper.make_tensor(
                tensor.name, TensorProto.BFLOAT16, array.shape, rounded.tobytes(), raw=True
            )
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16

    fused = reparam.fuse(model)

    assert counts(fused) == {"Conv": 1}
    assert {t.data_type for t in fused.graph.initializer} == {TensorProto.BFLOAT16}
    onnx.checker.check_model(fused, full_check=True)
