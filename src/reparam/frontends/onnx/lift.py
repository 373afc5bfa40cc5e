"""Lift the graph of an ONNX model: the rules for torch, for what reads as words of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from reparam.frontends.builder import Pads
from reparam.frontends.onnx import words_layouts  # noqa: F401 (enters its words)
from reparam.frontends.onnx.numbers import Numbers
from reparam.frontends.onnx.read import Reader, Reading, elementwise
from reparam.frontends.onnx.words import WORDS
from reparam.frontends.shapes import Shape
from reparam.frontends.torch import rules_moves
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.rules import rule_for
from reparam.frontends.torch.table import reads
from reparam.frontends.torch.trace import Trace
from reparam.program import Affine, Alias, Node, Program
from reparam.reasons import Reason

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_CHANNELS_SECOND = {
    "Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "AveragePool",
    "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "LRN",
}  # fmt: skip
"""Operations that tell of their input that its channels are on the second axis."""

_AXES_STAY = {
    "Add", "Sub", "Mul", "Div", "Neg", "Pad", "Slice", "Identity", "Dropout", "Cast", "Relu",
    "Clip", "LeakyRelu", "Sigmoid", "HardSwish",
}  # fmt: skip
"""Operations that return a value with the axes of their input."""

_NEAR = 16
"""Values to look at for an operation that tells where the channels of one before them are."""


@dataclass(eq=False)
class OnnxLifted(Reading):
    """A lifted graph: the planner's program and the way back to the operations of the file.

    Attributes:
        program: The planner's program.
        stacks: Values that were joined along an axis of their own, and that only sums read.

    """

    program: Program = field(default_factory=Program)
    stacks: frozenset[str] = frozenset()

    def nodes_of(self, node: Node) -> list[NodeProto]:
        """The operations of the file that a planner node, or what it is a copy of, stands for."""
        return [self.model.graph.node[index] for index in self.indices_of(node)]

    def indices_of(self, node: Node) -> tuple[int, ...]:
        """Their positions in the graph."""
        return self.indices[node.origin]

    def name_of(self, node: Node) -> str:
        """The name of a planner node's value in the file.

        A moved operation has no value of its own in the file: once it is folded, the value it was
        moved behind is what it returns.
        """
        while node.is_copy:
            node = node.inputs[0]
        return self.names[node.origin]

    def positions(self, node: Node, channels: int) -> int | None:
        """Number of positions of a value, where known; an open size of the batch counts as one."""
        while node.is_virtual:
            node = node.inputs[0]
        shape = self.shapes.shapes.get(self.name_of(node), (None,))
        sizes = [size for size in shape if isinstance(size, int)]
        if len(sizes) < len(shape[1:]) + isinstance(shape[0] if shape else 1, int):
            return None
        return None if math.prod(sizes) % channels else math.prod(sizes) // channels

    def reads(self, node: Node) -> tuple[str, ...]:
        """The names of the constants that a planner node reads."""
        return tuple(node.reads) if isinstance(node, Affine) else ()

    def layer_of(self, node: Node) -> NodeProto:
        """The operation that reads the weight, of a node that stands for one or two."""
        return self.nodes_of(node)[0]


def lift_onnx(model: ModelProto, opset: int) -> OnnxLifted:
    """Lift the main graph of a model whose default domain has the given version."""
    reading = Reader.read(model, opset, WORDS)
    lifter = _Lifter(reading)
    lifted = lifter.run(rule_for)
    stacks = frozenset(reading.names[value] for value in lifted.stacks)
    return OnnxLifted(**vars(reading), program=lifted.program, stacks=stacks)


reads(elementwise)(rules_moves.elementwise)


class _Lifter(Lifter):
    """Names operations as the file does, and knows the shapes that it declares."""

    remedy = "give the file shapes"
    keeps_activations = True

    def __init__(self, reading: Reading) -> None:
        super().__init__(
            Trace(nn.Module(), "", reading.graph, {}, {}), training=False, vectors=False, probed={},
            constants=Numbers(reading.constants),
        )  # fmt: skip
        self._reading = reading
        self._nodes = reading.model.graph.node

    def describe(self, node: fx.Node) -> str:
        """Name an operation as the format does."""
        indices = self._reading.indices[node]
        return self._nodes[indices[-1]].op_type if indices else f"input {self._name(node)}"

    def named(self, operation: fx.Node) -> dict[str, Any]:
        """Name the nodes of an operation."""
        indices, name = self._reading.indices[operation], self._name(operation)
        proto = self._nodes[indices[-1]] if indices else None
        return {
            "key": indices[-1] if indices else ("input", name),
            "order": self._order,
            "where": name if proto is None else proto.name or name or proto.op_type,
            "origin": operation,
        }

    def layer_name(self, node: fx.Node) -> str:
        """Name a layer as the format does."""
        return self.describe(node)

    def shape(self, node: fx.Node) -> Shape | None:
        """Sizes of a value, as far as the file declares them or they follow."""
        return self._reading.shapes.shapes.get(self._name(node))

    def keeps_shape(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a value has the axes of one that it is computed from."""
        return self.shape(node) == self.shape(source)

    def note_shape(self, node: fx.Node, lifted: Node) -> None:
        """Take what is declared of a value."""
        shape, facts = self.shape(node), self.facts_of(lifted)
        if shape is None:
            return
        facts.rank = len(shape)
        if facts.channels is None and lifted.axis is not None and -lifted.axis <= len(shape):
            size = shape[lifted.axis]
            facts.channels = size if isinstance(size, int) else None

    def repads(self, node: fx.Node, pads: Pads, mode: str) -> Node | None:
        """Make a node that pads a value with something else than zeros, as another may have."""
        source: Any = node.args[0]
        axis = self.nodes[source].axis
        if axis is None or axis + len(pads) != -1:
            return None
        known = self.padded(node, source, pads, mode, axis=axis, of_layer=False)
        if known.order == self._order:
            return known
        facts = self.facts_of(known)
        return self.node(Alias, node, (known,), f"{mode} padding", facts, axis=known.axis)

    def opaque(self, node: fx.Node, reason: Reason | None = None, *, keeps: bool = False) -> Node:
        """Make a node that the planner does not look into; see :meth:`unknown`."""
        keeps = keeps or node in self._reading.elementwise
        return super().opaque(node, reason or self._reading.reasons.get(node), keeps=keeps)

    def axis_told(self, node: fx.Node) -> int | None:
        """Channel axis of a value as what reads it says, it or what is computed from it."""
        shapes, name = self._reading.shapes, self._name(node)
        rank, waiting, seen = shapes.rank(name), [name], {name}
        while rank and waiting and len(seen) < _NEAR:
            value = waiting.pop(0)
            for reader in (self._nodes[index] for index in self._reading.readers.get(value, ())):
                if reader.op_type in _CHANNELS_SECOND and reader.input[0] == value:
                    return 1 - rank
                after = reader.output[0]
                if (
                    reader.op_type in _AXES_STAY
                    and shapes.rank(after) == rank
                    and after not in seen
                ):
                    seen.add(after)
                    waiting.append(after)
        return None

    def _name(self, node: fx.Node) -> str:
        return self._reading.names.get(node, "")
