"""Values of an ONNX graph that do not depend on its inputs: initializers and what follows."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from torch import Tensor

from reparam.errors import InexactError
from reparam.frontends.onnx.inputs import overridable
from reparam.frontends.onnx.nodes import inner_graphs
from reparam.frontends.onnx.run import constant_of, run_nodes
from reparam.frontends.onnx.shapes import Shapes
from reparam.frontends.onnx.tensors import FLOATS, as_double, onnx_module, to_torch

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

DEFAULT_DOMAINS = {"", "ai.onnx"}

_LARGE = 1 << 18
"""Numbers from which a tensor is kept in memory only until some others were read."""

_LARGE_KEPT = 8
"""Large tensors that are kept: those of the regions that are folded at one time."""

_NEVER = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    "Bernoulli", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger",
    "MatMulInteger", "QLinearConv", "QLinearMatMul", "Dropout",
}  # fmt: skip
"""Operations whose result is not a plain function of numbers, or must not be taken for weights."""


class Constants:
    """Initializers, Constant nodes, and what is computed from them alone.

    Values are computed in float64, whatever type they have in the file.
    """

    def __init__(self, model: ModelProto, shapes: Shapes, opset: int) -> None:
        """Find them, in the order of the graph."""
        self._opset, self._shapes = opset, shapes
        self.overridable = overridable(model)
        self._stored = {
            tensor.name: tensor
            for tensor in model.graph.initializer
            if tensor.name not in self.overridable
        }
        self._made: dict[str, NodeProto] = {}
        self.nodes: set[int] = set()
        for index, node in enumerate(model.graph.node):
            if self._is_constant(node):
                self.nodes.add(index)
                self._made.update(dict.fromkeys(node.output, node))
        self._small = functools.cache(self._compute)
        self._large = functools.lru_cache(maxsize=_LARGE_KEPT)(self._compute)

    def __contains__(self, name: object) -> bool:
        """Whether the value of this name is constant."""
        return name in self._stored or name in self._made

    def value(self, name: str) -> Tensor:
        """The value, float64 where it is floating point."""
        return as_double(self.numbers(name))

    def numbers(self, name: str) -> Tensor:
        """The value in the type that it is stored in, where it is stored and not computed."""
        stored = self._stored.get(name)
        large = stored is not None and math.prod(stored.dims) >= _LARGE
        return self._large(name) if large else self._small(name)

    def forget(self) -> None:
        """Free the memory of what was read; it is read again where it is needed."""
        self._small.cache_clear()
        self._large.cache_clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, from the file where it is stored."""
        if name in self._stored:
            return tuple(self._stored[name].dims)
        return tuple(self.numbers(name).shape)

    def integers(self, name: str) -> list[int]:
        """The value as a list of whole numbers: a shape, axes, pads."""
        return [int(v) for v in self.numbers(name).reshape(-1).tolist()]

    def type(self, name: str) -> int | None:
        """ONNX's number of the type that it has in the graph."""
        if name in self._stored:
            return int(self._stored[name].data_type)
        return self._shapes.types.get(name)

    def sources(self, name: str) -> set[str]:
        """The stored tensors, by name, that a constant is computed from."""
        return self._behind(name)[0]

    def operations(self, name: str) -> int:
        """Number of operations that compute it at every run."""
        return self._behind(name)[1]

    def _behind(self, name: str) -> tuple[set[str], int]:
        """The stored tensors and the number of operations, each counted once, behind a constant."""
        stored: set[str] = set()
        makers: dict[int, NodeProto] = {}
        waiting = [name]
        while waiting:
            read = waiting.pop()
            node = self._made.get(read)
            if node is None or node.op_type == "Constant":
                stored.add(read)
            elif id(node) not in makers:
                makers[id(node)] = node
                waiting += self._inputs(node)
        return stored, sum(node.op_type != "Identity" for node in makers.values())

    def _is_constant(self, node: NodeProto) -> bool:
        if node.domain not in DEFAULT_DOMAINS or node.op_type in _NEVER or any(inner_graphs(node)):
            return False
        if node.op_type == "Constant":
            return constant_of(node) is not None
        reads = self._inputs(node)
        return bool(reads) and all(name in self for name in reads)

    @staticmethod
    def _inputs(node: NodeProto) -> list[str]:
        """What a node reads the contents of."""
        reads = node.input[:1] if node.op_type == "CastLike" else node.input
        return [name for name in reads if name]

    def _compute(self, name: str) -> Tensor:
        if name in self._stored:
            return to_torch(self._stored[name])
        node = self._made[name]
        if node.op_type == "Constant":
            value = constant_of(node)
            assert value is not None  # noqa: S101 (checked when it was taken for a constant)
            return value
        feeds = {read: self.value(read) for read in self._inputs(node)}
        try:
            return run_nodes([self._plain(node, name)], feeds, name, self._opset)
        except Exception as error:
            # The reference evaluator raises whatever numpy and its own operators raise.
            raise InexactError(
                f"its constant {name!r} cannot be computed by onnx's reference: {error}"
            ) from error

    def _plain(self, node: NodeProto, output: str) -> NodeProto:
        """Write CastLike as a Cast, so that the value whose type it takes is not needed."""
        if node.op_type != "CastLike":
            return node
        target = self._shapes.types.get(output)
        if target is None:
            raise InexactError(f"the type of its constant {output!r} is not known")
        plain: NodeProto = onnx_module("onnx.helper").make_node(
            "Cast", node.input[:1], node.output, to=target
        )
        return plain

    def is_floating(self, name: str) -> bool:
        """Whether a constant has one of the types that weights have."""
        return self.type(name) in FLOATS
