"""Nets as converters from other frameworks write them, after real files of tf2onnx and paddle2onnx.

These two were converted from Keras and Paddle and looked at (tf2onnx 1.17, paddle2onnx 2.1); the
same forms are written by hand here, so that the tests need neither framework.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

import reparam
from onnx_graphs import Graph, assert_equal, counts, largest_error, run_in_ort


def tf2onnx_block(g, x):
    """Norms behind a convolution are in its bias; one without is a product and a sum."""
    branches = [g.conv(x, bias=True, pads=[1, 1, 1, 1]), g.conv(x, size=1, bias=True)]
    scaled = g.op("Mul", x, g.random(1, 8, 1, 1))
    shifted = g.op("Add", scaled, g.random(1, 8, 1, 1))
    return g.relu(g.op("Add", g.op("Add", *branches), shifted))


def paddle2onnx_block(g, x):
    """Every sum is followed by an identity, whose value has the name that Paddle gave."""
    first = g.norm(g.conv(x, pads=[1, 1], strides=[1], dilations=[1], kernel_shape=[3], dims=1))
    second = g.norm(g.conv(x, size=1, pads=[0, 0], strides=[1], dilations=[1], dims=1))
    total = g.op("Identity", g.op("Add", first, second))
    return g.relu(g.op("Identity", g.op("Add", total, g.norm(x))))


def test_a_net_of_tf2onnx():
    """The picture comes with its channels last and leaves as a matrix product with a bias."""
    g = Graph("n", 7, 9, 8)
    x = g.op("Transpose", g.x, perm=[0, 3, 1, 2])
    for _ in range(2):
        x = tf2onnx_block(g, x)
    mean = g.op("Squeeze", g.op("GlobalAveragePool", x), g.integers(2, 3))
    model = g.model(g.op("Add", g.op("MatMul", mean, g.random(8, 3)), g.random(3)))

    fused = reparam.fuse(model)

    left = {"Transpose": 1, "Conv": 2, "Relu": 2, "GlobalAveragePool": 1, "Squeeze": 1}
    kept = {key: n for key, n in counts(fused).items() if key not in {"MatMul", "Add", "Gemm"}}
    assert kept == left
    assert_equal(model, fused, np.random.default_rng(0).normal(size=(2, 7, 9, 8)))


def test_a_net_of_paddle2onnx():
    """Weights stand in Constant nodes, and the shape of a flattened map is computed from it."""
    g = Graph("n", 8, "h", dtype=TensorProto.FLOAT)
    x = g.x
    for _ in range(2):
        x = paddle2onnx_block(g, x)
    pooled = g.op("GlobalAveragePool", x)
    ends = [g.integers(value) for value in (0, 1, 0)]
    batch = g.op("Slice", g.op("Shape", pooled), *ends)
    flat = g.op("Reshape", pooled, g.op("Concat", batch, g.integers(-1), axis=0))
    out = g.op("Identity", g.op("Add", g.op("MatMul", flat, g.random(8, 3)), g.random(3)))
    g.nodes = [
        *(helper.make_node("Constant", [], [t.name], value=t) for t in g.tensors),
        *g.nodes,
    ]
    g.tensors = []
    model = g.model(out, opset=11, ir=6)
    output = helper.make_tensor_value_info(out, TensorProto.FLOAT, ["n", 3])
    model.graph.output[0].CopyFrom(output)

    fused = reparam.fuse(model)

    found = counts(fused)
    assert found["Conv"] == 2
    assert not {"BatchNormalization", "Sum"} & set(found)
    onnx.checker.check_model(fused, full_check=True)
    x = np.random.default_rng(0).normal(size=(2, 8, 6)).astype(np.float32)
    # Not in onnx's evaluator: for this opset it normalises by the statistics of the batch.
    assert largest_error(run_in_ort(model, x), run_in_ort(fused, x)) < 1e-5
