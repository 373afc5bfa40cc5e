"""Operators of ONNX are read as ONNX Runtime runs them: diff checks each reading by a run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import reparam

SHAPE = (2, 8, 7, 9)
RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


CASES = {
    "pads that differ": ("Conv", [floats(4, 8, 3, 3), floats(4)], {"pads": [0, 1, 2, 1]}),
    "the same size": ("Conv", [floats(4, 8, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "the same size, lower": ("Conv", [floats(4, 8, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    "dilated": ("Conv", [floats(8, 2, 3, 3)], {"dilations": [2, 1], "group": 4}),
    "transposed": ("ConvTranspose", [floats(8, 2, 3, 3)], {"group": 2, "strides": [2, 1],
                                                          "output_padding": [1, 0]}),
    "group norm": ("GroupNormalization", [floats(8), floats(8)], {"num_groups": 4}),
    "instance norm": ("InstanceNormalization", [floats(8), floats(8)], {"epsilon": 1e-3}),
    "layer norm": ("LayerNormalization", [floats(7, 9), floats(7, 9)], {"axis": 2}),
    "average, pads counted": ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 1],
                                                  "count_include_pad": 1}),
    "average, pads not counted": ("AveragePool", [], {"kernel_shape": [3, 2],
                                                      "pads": [0, 1, 1, 0]}),
    "average, cut off": ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [2, 2],
                                             "ceil_mode": 1}),
    "largest, pads that differ": ("MaxPool", [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 1],
                                                  "dilations": [2, 1]}),
    "channels to space, by rows": ("DepthToSpace", [], {"blocksize": 2}),
    "channels to space, by columns": ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    "slice backwards": ("Slice", [ints(-1, 5), ints(-20, 1), ints(1, 3), ints(-1, -2)], {}),
    "slice": ("Slice", [ints(1, -4), ints(2**31, -1), ints(2, 3), ints(2, 1)], {}),
    "gather": ("Gather", [ints(3, -1, 3)], {"axis": 1}),
    "larger": ("Max", [floats(*SHAPE)], {}),
    "smaller than a number": ("Min", [np.float32(0.3)], {}),
    "sine": ("Sin", [], {}),
    "tile": ("Tile", [ints(1, 2, 1, 3)], {}),
    "pad by a number": ("Pad", [ints(0, 0, 1, 0, 0, 0, 0, 2), np.float32(1.5)], {}),
    "pad around": ("Pad", [ints(0, 0, 1, 0, 0, 0, 2, 2)], {"mode": "wrap"}),
    "reflect": ("Pad", [ints(0, 0, 1, 0, 0, 0, 0, 2)], {"mode": "reflect"}),
    "elu": ("Elu", [], {"alpha": 0.7}),
    "selu": ("Selu", [], {}),
    "hard sigmoid": ("HardSigmoid", [], {}),
    "one slope a channel": ("PRelu", [floats(8, 1, 1)], {}),
    "product": ("Einsum", [floats(8, 5)], {"equation": "bchw,co->bohw"}),
    "norm": ("ReduceL2", [ints(2, 3)], {"keepdims": 0}),
    "doubled": ("Resize", [np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)],
                {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                 "nearest_mode": "floor"}),
    "smooth": ("Resize", [np.array([], np.float32), np.array([], np.float32), ints(2, 8, 11, 18)],
               {"mode": "linear"}),
}  # fmt: skip


def graph_of(kind, numbers, attributes):
    """The operator, behind a scale of the channels and an activation so that a map stands there."""
    stored = [numpy_helper.from_array(np.asarray(each), f"n{k}") for k, each in enumerate(numbers)]
    stored.append(
        numpy_helper.from_array(np.linspace(1, 2, 8, dtype=np.float32).reshape(8, 1, 1), "s")
    )
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["scaled"], name="scale"),
        helper.make_node("Sigmoid", ["scaled"], ["gate"], name="gate"),
        helper.make_node(
            kind, ["gate", *(f"n{k}" for k in range(len(numbers)))], ["y"], name="it", **attributes
        ),
    ]
    graph = helper.make_graph(
        nodes, "case", [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("name", CASES)
def test_operators_are_read_as_they_run(name):
    graph = graph_of(*CASES[name])
    assert reparam.diff(graph, graph).outcome == "equal"
    other = onnx.ModelProto.FromString(graph.SerializeToString())
    scale = next(each for each in other.graph.initializer if each.name == "s")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.01), "s"))
    assert reparam.diff(graph, other).outcome == "different"


def _standardised(changed: float = 0.0) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A graph that centres and scales its kernel at every call, and one that stores the result."""
    kernel = floats(4, 8, 3, 3)
    made = [
        helper.make_node("ReduceMean", ["w"], ["mean"], axes=[1, 2, 3]),
        helper.make_node("Sub", ["w", "mean"], ["centred"]),
        helper.make_node("ReduceL2", ["centred"], ["size"], axes=[1, 2, 3]),
        helper.make_node("Div", ["centred", "size"], ["kernel"]),
    ]
    wide = kernel.astype(np.float64)
    wide -= wide.mean((1, 2, 3), keepdims=True)
    wide /= np.sqrt(np.square(wide).sum((1, 2, 3), keepdims=True))
    wide[1, 2, 0, 1] += changed
    models = []
    for nodes, stored in (made, ("w", kernel)), ([], ("kernel", wide.astype(np.float32))):
        graph = helper.make_graph(
            [*nodes, helper.make_node("Conv", ["x", "kernel"], ["y"])], "standardised",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(SHAPE))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(stored[1], stored[0])],
        )  # fmt: skip
        models.append(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        )
    return models[0], models[1]


def test_weights_that_a_graph_computes_are_taken_without_rounding() -> None:
    assert reparam.diff(*_standardised()).outcome == "equal"
    assert reparam.diff(*_standardised(changed=1e-5)).outcome == "different"
