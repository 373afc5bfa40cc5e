"""Lift the graph of an ONNX model into the planner's nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from reparam.algebra import Leaf
from reparam.errors import InexactError
from reparam.graph.ir import Kind, Node, Program
from reparam.graph.onnx_constants import DEFAULT_DOMAINS, Constants
from reparam.graph.onnx_nodes import inner_graphs, outer_reads
from reparam.graph.onnx_shapes import Shape, Shapes, infer
from reparam.reasons import Reason, Why

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["OnnxLifted", "OnnxLifter", "Rule", "lift_onnx"]

Pads = tuple[tuple[int, int], ...]

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
class OnnxLifted:
    """A lifted graph: the planner's program and the way back to the operations of the file.

    Attributes:
        model: The model; it is only read.
        program: The planner's program.
        constants: The values that do not depend on the inputs.
        shapes: What is known of the values.
        opset: Version of the operations of the default domain.
        origin: For every planner node the indices, in ``graph.node``, of what it stands for.
        names: For every planner node the name of its value.
        reads: For every planner node with numbers the constants that it reads.
        stand_ins: For planner nodes that read numbers which hold for one size of input only: the
            names of these, and numbers that hold for every size.
        readers: For every value the indices of the operations that read it, once each read.

    """

    model: ModelProto
    program: Program
    constants: Constants
    shapes: Shapes
    opset: int
    origin: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    names: dict[Node, str] = field(default_factory=dict)
    reads: dict[Node, tuple[str, ...]] = field(default_factory=dict)
    stand_ins: dict[Node, dict[str, Tensor]] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)

    def nodes_of(self, node: Node) -> list[NodeProto]:
        """The operations of the file that a planner node, or what it is a copy of, stands for."""
        return [self.model.graph.node[index] for index in self.indices_of(node)]

    def indices_of(self, node: Node) -> tuple[int, ...]:
        """Their positions in the graph."""
        return self.origin[node.twin_of or node]

    def name_of(self, node: Node) -> str:
        """The name of a planner node's value in the file.

        A moved operation has no value of its own in the file: once it is folded, the value it was
        moved behind is what it returns.
        """
        while node.twin_of is not None:
            node = node.inputs[0]
        return self.names[node]

    def layer_of(self, node: Node) -> NodeProto:
        """The operation that reads the weight, of a node that stands for one or two."""
        return self.nodes_of(node)[0]


class OnnxLifter:
    """Walk a graph once and make a planner node of every operation that is not constant.

    The rules for the single operations are in :mod:`reparam.graph.onnx_rules`; they call back
    :meth:`affine`, :meth:`sum`, :meth:`alias`, :meth:`layout`, :meth:`opaque` and the like.
    """

    def __init__(self, model: ModelProto, opset: int) -> None:
        """Read what is known before the walk."""
        self.graph = model.graph
        self.opset = opset
        self.shapes = infer(model)
        self.constants = Constants(model, self.shapes, opset)
        self.values: dict[str, Node] = {}
        self.lifted = OnnxLifted(model, Program(), self.constants, self.shapes, opset)
        self.readers = self.lifted.readers
        self.outputs = {value.name for value in model.graph.output}
        self._captured: set[str] = set()
        self._channels: dict[Node, int | None] = {}
        self._paired: dict[int, int] = {}
        self._padded: dict[tuple[Node, Pads, str], Node] = {}
        self._index = 0
        self._note_readers()

    def run(self, rule_for: Callable[[NodeProto], Rule | None]) -> OnnxLifted:
        """Lift every operation; ``rule_for`` finds its rule."""
        for value in self.graph.input:
            if value.name not in self.constants:
                self._input(value.name)
        for index, proto in enumerate(self.graph.node):
            self._index = index
            if index in self.constants.nodes:
                continue
            default = proto.domain in DEFAULT_DOMAINS and not any(inner_graphs(proto))
            lifted = self._apply(rule_for(proto) if default else None, proto)
            if index in self._paired.values():
                # Nothing but the operation that it is one with reads its value.
                continue
            self._enter(proto, lifted or self.opaque(proto))
        for name in self.outputs | self._captured:
            if name in self.values:
                self.lifted.program.pinned.add(self.values[name])
        return self.lifted

    def _apply(self, rule: Rule | None, proto: NodeProto) -> Node | None:
        try:
            return None if rule is None else rule(self, proto)
        except InexactError as error:
            return self.opaque(proto, error.reason)

    def _enter(self, proto: NodeProto, lifted: Node) -> None:
        """Give the values of an operation their nodes; what folds has one value."""
        first, *others = proto.output or ("",)
        if first:
            self.values[first] = lifted
        for name in others:
            if name:
                self.values[name] = self._other_output(proto, name, lifted)

    # ---------------------------------------------------------------- what rules make

    def affine(  # noqa: PLR0913 (what a rule knows of an operator)
        self, proto: NodeProto, source: str, leaf: Leaf, what: str, *, axis: int, stored: int,
        reads: Iterable[str] = (), computed: int = 0,
    ) -> Node:  # fmt: skip
        """Make a node that applies an operator to one value."""
        lifted = self._node(Kind.AFFINE, (self.values[source],), proto, what)
        lifted.leaf, lifted.axis, lifted.stored, lifted.computed = leaf, axis, stored, computed
        self._channels[lifted] = leaf.geometry.out_channels
        self.lifted.reads[lifted] = tuple(reads)
        return lifted

    def hosted(self, proto: NodeProto, leaf: Leaf, what: str, reads: Iterable[str]) -> Node:
        """Make two nodes: what a layer reads from its input, and the layer as an operator on it."""
        source = self.values[proto.input[0]]
        read = self._node(Kind.OPAQUE, (source,), proto, f"the input of {what}")
        read.virtual = True
        lifted = self._node(Kind.AFFINE, (read,), proto, what)
        lifted.leaf, lifted.axis = leaf, -leaf.geometry.dims - 1
        lifted.stored = leaf.geometry.parameters
        self._channels[lifted] = leaf.geometry.out_channels
        self.lifted.reads[lifted] = tuple(reads)
        return lifted

    def padded(self, proto: NodeProto, pads: Pads, mode: str, axis: int) -> Node:
        """Make a node that pads a value with something else than zeros, or find its like.

        What reads the value beside it then counts as a branch of the padded value.
        """
        before = self.values[proto.input[0]]
        known = self._padded.get((before, pads, mode))
        if known is not None:
            twin = self._node(Kind.ALIAS, (known,), proto, f"{mode} padding")
            twin.axis = axis
            return twin
        lifted = self._node(Kind.OPAQUE, (before,), proto, f"{mode} padding")
        lifted.axis, lifted.pads, lifted.padding_mode = axis, pads, mode
        self._padded[before, pads, mode] = lifted
        return lifted

    def sum(self, proto: NodeProto, terms: list[str], coefficients: list[float]) -> Node:
        """Make a node that adds values."""
        before = [self.values[t] for t in terms]
        lifted = self._node(Kind.SUM, tuple(before), proto, "add")
        lifted.coefficients = tuple(coefficients)
        lifted.axis = next((v.axis for v in before if v.axis is not None), None)
        known = [c for v in before if (c := self._channels.get(v)) is not None]
        self._channels[lifted] = max(known, default=None)
        return lifted

    def alias(self, proto: NodeProto, source: str) -> Node:
        """Make a node that returns its input."""
        before = self.values[source]
        lifted = self._node(Kind.ALIAS, (before,), proto, proto.op_type)
        lifted.axis = before.axis
        self._channels[lifted] = self._channels.get(before)
        return lifted

    def layout(self, proto: NodeProto, axis: int) -> Node:
        """Make a node that moves the channel axis of its input to ``axis`` (from the end)."""
        before = self.values[proto.input[0]]
        lifted = self._node(Kind.LAYOUT, (before,), proto, proto.op_type)
        lifted.axis = axis
        self._channels[lifted] = self._channels.get(before)
        return lifted

    def concat(self, proto: NodeProto, axis: int) -> Node:
        """Make a node that joins values along their channel axis."""
        before = [self.values[name] for name in proto.input]
        lifted = self._node(Kind.CONCAT, tuple(before), proto, proto.op_type)
        lifted.axis = axis
        sizes = [self._channels.get(v) for v in before]
        self._channels[lifted] = (
            None if None in sizes else sum(size for size in sizes if size is not None)
        )
        return lifted

    def opaque(
        self, proto: NodeProto, reason: Reason | None = None, *, keeps: bool = False
    ) -> Node:
        """Make a node that the planner does not look into.

        ``keeps`` says that it works on every element by itself, so that the axes stay in place.
        """
        read = [n for n in (*proto.input, *outer_reads(proto)) if n in self.values]
        sources = tuple(self.values[name] for name in dict.fromkeys(read))
        lifted = self._node(Kind.OPAQUE, sources, proto, proto.op_type)
        lifted.reason = reason
        lifted.shape_only = proto.op_type in {"Shape", "Size"}
        if keeps and sources:
            lifted.axis = sources[0].axis
            self._channels[lifted] = self._channels.get(sources[0])
        if lifted.axis is None:
            lifted.axis = self._axis_from_readers(_first_output(proto))
        return lifted

    def pair(self, first: int, second: int) -> None:
        """Note that an operation is one with a later one, which alone reads it."""
        self._paired[second] = first

    def paired_with(self) -> NodeProto | None:
        """The earlier operation that the present one is one with."""
        first = self._paired.get(self._index)
        return None if first is None else self.graph.node[first]

    # ---------------------------------------------------------------- what rules ask

    @property
    def index(self) -> int:
        """Position of the operation that is being lifted."""
        return self._index

    def is_value(self, name: str) -> bool:
        """Whether a name is that of a value that depends on the inputs."""
        return name in self.values

    def axis(self, name: str) -> int | None:
        """Channel axis of a value, from the end."""
        return self.values[name].axis

    def shape(self, name: str) -> Shape | None:
        """Shape of a value."""
        return self.shapes.shapes.get(name)

    def channels(self, name: str) -> int | None:
        """Channels of a value."""
        known = self._channels.get(self.values[name])
        shape, axis = self.shape(name), self.axis(name)
        if known is None and shape is not None and axis is not None:
            size = shape[axis]
            known = size if isinstance(size, int) else None
        return known

    def rank(self, name: str) -> int | None:
        """Number of dimensions of a value."""
        return self.shapes.rank(name)

    def maker(self, name: str) -> NodeProto | None:
        """The operation that returns a value; None for an input."""
        indices = self.lifted.origin.get(self.values[name])
        return None if indices is None else self.graph.node[indices[-1]]

    def why_not_constant(self, what: str, names: Iterable[str]) -> Reason:
        """The reason why numbers that an operation reads are not constant."""
        inputs, makers = self._behind(names)
        if inputs and inputs <= self.constants.overridable:
            return Why.OVERRIDABLE(what=what, name=min(inputs))
        if not inputs and "DequantizeLinear" in makers:
            return Why.QUANTISED_WEIGHT(what=what)
        return Why.NOT_CONSTANT(what=what)

    def only_reader(self, name: str) -> int | None:
        """The position of the operation that alone reads a value, once."""
        readers = self.readers.get(name, [])
        alone = len(readers) == 1 and name not in self.outputs | self._captured
        return readers[0] if alone else None

    # ---------------------------------------------------------------- internals

    def _note_readers(self) -> None:
        readers: dict[str, list[int]] = defaultdict(list)
        for index, proto in enumerate(self.graph.node):
            outer = outer_reads(proto)
            self._captured |= outer
            for name in (*proto.input, *outer):
                if name:
                    readers[name].append(index)
        self.readers.update(readers)

    def _behind(self, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """The inputs, and the kinds of operations, that values are computed from."""
        inputs: set[str] = set()
        makers: set[str] = set()
        waiting = [name for name in names if name in self.values]
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            maker = self.maker(name)
            if maker is None:
                inputs.add(name)
                continue
            makers.add(maker.op_type)
            fresh = {read for read in maker.input if read in self.values} - seen
            seen |= fresh
            waiting += fresh
        return inputs, makers

    def _input(self, name: str) -> None:
        lifted = Node(Kind.OPAQUE, (), ("input", name), -1, f"input {name}", name)
        lifted.axis = self._axis_from_readers(name)
        self.lifted.program.nodes.append(lifted)
        self.lifted.names[lifted] = name
        self.values[name] = lifted

    def _other_output(self, proto: NodeProto, name: str, first: Node) -> Node:
        lifted = self._node(Kind.OPAQUE, first.inputs, proto, proto.op_type)
        lifted.axis = self._axis_from_readers(name)
        self.lifted.names[lifted] = name
        return lifted

    def _node(self, kind: Kind, inputs: tuple[Node, ...], proto: NodeProto, what: str) -> Node:
        where = proto.name or _first_output(proto) or proto.op_type
        lifted = Node(kind, inputs, self._index, self._index, what, where)
        self.lifted.program.nodes.append(lifted)
        first = self._paired.get(self._index)
        self.lifted.origin[lifted] = (self._index,) if first is None else (first, self._index)
        self.lifted.names[lifted] = _first_output(proto)
        return lifted

    def _axis_from_readers(self, name: str) -> int | None:
        rank, waiting, seen = self.rank(name), [name], {name}
        while rank and waiting and len(seen) < _NEAR:
            value = waiting.pop(0)
            for reader in (self.graph.node[index] for index in self.readers.get(value, ())):
                if reader.op_type in _CHANNELS_SECOND and reader.input[0] == value:
                    return 1 - rank
                after = reader.output[0]
                if reader.op_type in _AXES_STAY and self.rank(after) == rank and after not in seen:
                    seen.add(after)
                    waiting.append(after)
        return None


Rule = Callable[[OnnxLifter, "NodeProto"], Node | None]


def lift_onnx(model: ModelProto, opset: int) -> OnnxLifted:
    """Lift the main graph of a model whose default domain has the given version."""
    from reparam.graph.onnx_rules import rule_for

    return OnnxLifter(model, opset).run(rule_for)


def _first_output(proto: NodeProto) -> str:
    """The first value that an operation returns; empty where it leaves that one out."""
    return proto.output[0] if proto.output else ""
