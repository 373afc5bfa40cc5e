"""The order in which a file lists its operations is no difference."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import reparam

WIDTH = 4


def _node(kind: str, read: str, other: str, name: str, rng) -> tuple[onnx.NodeProto, dict]:
    """An operation, and the numbers that it brings."""
    if kind in {"dense", "depthwise"}:
        groups = 1 if kind == "dense" else WIDTH
        weight = rng.standard_normal((WIDTH, WIDTH // groups, 3, 3))
        node = helper.make_node(
            "Conv", [read, f"{name}.w"], [name], name, pads=[1] * 4, group=groups
        )
        return node, {f"{name}.w": weight}
    if kind == "norm":
        numbers = (rng.random(WIDTH) + 0.5, rng.standard_normal(WIDTH), rng.standard_normal(WIDTH),
                   rng.random(WIDTH) + 0.5)  # fmt: skip
        named = {f"{name}.{k}": value for k, value in enumerate(numbers)}
        return helper.make_node("BatchNormalization", [read, *named], [name], name), named
    if kind == "sum":
        return helper.make_node("Add", [read, other], [name], name), {}
    return helper.make_node("Relu", [read], [name], name), {}


def _graph(seed: int, order: int | None, changed: float = 0.0) -> onnx.ModelProto:
    """A random network of nine operations, listed in one order of those in which they can run."""
    rng, nodes, stored, values = np.random.default_rng(seed), [], {}, ["x"]
    for k in range(9):
        kind = str(rng.choice(["dense", "depthwise", "sum", "relu", "norm", "sum"]))
        read = values[rng.integers(max(0, len(values) - 4), len(values))]
        other = values[rng.integers(0, len(values))] if kind == "sum" else ""
        node, numbers = _node(kind, read, other, f"value{k}", rng)
        nodes.append(node)
        stored |= numbers
        values.append(f"value{k}")
    listed, known, choose = [], {"x", *stored}, random.Random(order)
    while nodes:
        ready = [node for node in nodes if known.issuperset(node.input)]
        node = ready[0] if order is None else choose.choice(ready)
        nodes.remove(node)
        listed.append(node)
        known.update(node.output)
    if changed:
        next(each for name, each in stored.items() if name.endswith("w")).flat[0] += changed
    graph = helper.make_graph(
        listed, "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH, 6, 6])],
        [helper.make_tensor_value_info(v, TensorProto.FLOAT, None) for v in values[-2:]],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("seed", [25, 170, 260, *range(20)])
def test_the_order_of_operations_is_no_difference(seed: int) -> None:
    first = _graph(seed, None)
    for order in (1, 2):
        assert reparam.diff(first, _graph(seed, order)).outcome == "equal"


def test_a_changed_kernel_is_one_in_any_order() -> None:
    for order in (1, 2, 3):
        other = _graph(25, order, changed=0.01)
        assert reparam.diff(_graph(25, None), other).outcome == "different"
