"""Small ONNX models written by hand, and how the tests run and compare them.

They are float64 throughout, so that the reference evaluator of onnx shows a fold to be exact up to
float64 rounding; every quantity of a batch normalisation is random, eps too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = [
    "TOLERANCE",
    "Graph",
    "assert_equal",
    "counts",
    "evaluate",
    "largest_error",
    "run_in_ort",
    "sample",
]

TOLERANCE = 1e-12
"""Relative to the largest output: float64 rounding of sums of some thousand terms stays below."""


class Graph:
    """Writes a model operation by operation; every method returns the name of its value."""

    def __init__(self, *shape: int | str, dtype: int = TensorProto.DOUBLE, seed: int = 0) -> None:
        self.shape = shape or ("n", 8, "h", "w")
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.outputs: list[str] = []
        self.x = "image"

    def weight(self, array: Any, name: str | None = None) -> str:
        """Store numbers."""
        name = name or f"w{len(self.tensors)}"
        array = np.asarray(array, dtype=helper.tensor_dtype_to_np_dtype(self.dtype))
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        name = f"i{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    def floats(self, *values: float) -> str:
        name = f"f{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.array(values, dtype=np.float32), name))
        return name

    def random(self, *shape: int, name: str | None = None) -> str:
        return self.weight(self.rng.normal(size=shape), name)

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add an operation."""
        names = [f"v{len(self.nodes)}_{k}" if k else f"v{len(self.nodes)}" for k in range(outputs)]
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def conv(  # the arguments of a convolution
        self, x: str, cin: int = 8, cout: int = 8, size: int | tuple[int, ...] = 3, *,
        bias: bool = False, group: int = 1, dims: int = 2, **attributes: Any,
    ) -> str:  # fmt: skip
        sizes = (size,) * dims if isinstance(size, int) else size
        reads = [self.random(cout, cin // group, *sizes)]
        if bias:
            reads.append(self.random(cout))
        return self.op("Conv", x, *reads, group=group, **attributes)

    def norm(self, x: str, width: int = 8) -> str:
        numbers = [self.random(width), self.random(width), self.random(width)]
        var = self.weight(self.rng.uniform(0.5, 2.0, size=width))
        eps = float(self.rng.uniform(0.01, 0.2))
        return self.op("BatchNormalization", x, *numbers, var, epsilon=eps)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def model(
        self,
        *outputs: str,
        opset: int = 17,
        ir: int = 8,
        functions: tuple[onnx.FunctionProto, ...] = (),
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(self.x, self.dtype, list(self.shape))],
            [helper.make_tensor_value_info(name, self.dtype, None) for name in outputs],
            self.tensors,
        )
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(function.domain, 1) for function in functions]
        model = helper.make_model(graph, opset_imports=opsets, functions=functions)
        model.ir_version = ir
        inferred = onnx.shape_inference.infer_shapes(model)
        for value, known in zip(model.graph.output, inferred.graph.output, strict=True):
            value.CopyFrom(known)
        return model


def counts(model: onnx.ModelProto) -> dict[str, int]:
    """Operations by kind."""
    return dict(Counter(node.op_type for node in model.graph.node))


def evaluate(model: onnx.ModelProto, x: Any) -> list[Any]:
    """Run a model with the reference evaluator of onnx."""
    return ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})


def sample(model: onnx.ModelProto, seed: int = 1) -> Any:
    """A random input: batch 2, and sizes 7 and 8 where the model leaves them open."""
    info = model.graph.input[0].type.tensor_type
    free = {0: 2, 2: 7, 3: 8, 1: 5}
    sizes = [d.dim_value or free[k] for k, d in enumerate(info.shape.dim)]
    dtype = helper.tensor_dtype_to_np_dtype(info.elem_type)
    return np.random.default_rng(seed).normal(size=sizes).astype(dtype)


def largest_error(expected: list[Any], found: list[Any]) -> float:
    """Largest difference relative to the largest output."""
    assert [a.shape for a in expected] == [b.shape for b in found]
    assert [a.dtype for a in expected] == [b.dtype for b in found]
    pairs = zip(expected, found, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def assert_equal(
    first: onnx.ModelProto, second: onnx.ModelProto, x: Any = None, *, tolerance: float = TOLERANCE
) -> None:
    """Raise unless both are valid and return the same for a random input."""
    onnx.checker.check_model(second, full_check=True)
    x = sample(first) if x is None else x
    error = largest_error(evaluate(first, x), evaluate(second, x))
    assert error <= tolerance, error


def run_in_ort(model: onnx.ModelProto, x: Any) -> list[Any]:
    """Run a model in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})
