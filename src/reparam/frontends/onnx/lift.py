"""Lift the graph of an ONNX model into the planner's nodes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from reparam.errors import InexactError
from reparam.frontends.builder import Builder, Facts, Pads
from reparam.frontends.onnx.constants import DEFAULT_DOMAINS, Constants
from reparam.frontends.onnx.nodes import inner_graphs, outer_reads
from reparam.frontends.onnx.shapes import Shape, Shapes, infer
from reparam.program import Affine, Alias, Node, Opaque, Program, Routed, ShapeOf
from reparam.reasons import Reason, Why

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["OnnxLifted", "OnnxLifter", "Rule"]

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


@dataclass(frozen=True, slots=True)
class Origin:
    """What a planner node stands for: positions in ``graph.node``, and the name of its value."""

    indices: tuple[int, ...]
    name: str


def _origin(node: Node) -> Origin:
    assert isinstance(node.origin, Origin)  # noqa: S101 (this front end's nodes)
    return node.origin


@dataclass(eq=False)
class OnnxLifted:
    """A lifted graph: the planner's program and the way back to the operations of the file.

    Attributes:
        model: The model; it is only read.
        program: The planner's program.
        constants: The values that do not depend on the inputs.
        shapes: What is known of the values.
        opset: Version of the operations of the default domain.
        stand_ins: For operations that read numbers which hold for one size of input only, by their
            order: the names of these, and numbers that hold for every size.
        readers: For every value the indices of the operations that read it, once each read.
        stacks: Values that were joined along an axis of their own, and that only sums read.

    """

    model: ModelProto
    program: Program
    constants: Constants
    shapes: Shapes
    opset: int
    stand_ins: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)
    stacks: frozenset[str] = frozenset()

    def nodes_of(self, node: Node) -> list[NodeProto]:
        """The operations of the file that a planner node, or what it is a copy of, stands for."""
        return [self.model.graph.node[index] for index in self.indices_of(node)]

    def indices_of(self, node: Node) -> tuple[int, ...]:
        """Their positions in the graph."""
        return _origin(node).indices

    def name_of(self, node: Node) -> str:
        """The name of a planner node's value in the file.

        A moved operation has no value of its own in the file: once it is folded, the value it was
        moved behind is what it returns.
        """
        while node.is_copy:
            node = node.inputs[0]
        return _origin(node).name

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


class OnnxLifter(Builder["NodeProto", str]):
    """Walk a graph once and make a planner node of every operation that is not constant.

    The rules for the single operations are in :mod:`reparam.frontends.onnx.rules`.
    """

    def __init__(self, model: ModelProto, opset: int) -> None:
        """Read what is known before the walk."""
        super().__init__()
        self.model = model
        self.graph = model.graph
        self.opset = opset
        self.shapes = infer(model)
        self.constants = Constants(model, self.shapes, opset)
        self.stand_ins: dict[int, dict[str, Tensor]] = {}
        self.readers: dict[str, list[int]] = defaultdict(list)
        self.makers = {name: proto for proto in model.graph.node for name in proto.output}
        self.outputs = {value.name for value in model.graph.output}
        self._captured: set[str] = set()
        self._paired: dict[int, int] = {}
        self._done: dict[Hashable, str] = {}
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
        seen = (self.outputs | self._captured) & self.nodes.keys()
        program = Program(tuple(self.made), frozenset(self.nodes[name] for name in seen))
        return OnnxLifted(
            self.model, program, self.constants, self.shapes, self.opset, self.stand_ins,
            dict(self.readers), frozenset(self.stacks),
        )  # fmt: skip

    def _apply(self, rule: Rule | None, proto: NodeProto) -> Node | None:
        try:
            return None if rule is None else rule(self, proto)
        except InexactError as error:
            return self.opaque(proto, error.reason)

    def _enter(self, proto: NodeProto, lifted: Node) -> None:
        """Give the values of an operation their nodes; what folds has one value."""
        first, *others = proto.output or ("",)
        if first:
            self.nodes[first] = lifted
        for name in others:
            if name and name not in self.nodes:
                self.nodes[name] = self._other_output(proto, name, lifted)

    # ---------------------------------------------------------------- what rules make

    def repadded(self, proto: NodeProto, pads: Pads, mode: str) -> Node:
        """Make a node that pads a value with something else than zeros, as another may have."""
        source = proto.input[0]
        known = self.padded(proto, source, pads, mode, axis=self.axis(source), of_layer=False)
        if known.order == self._index:
            return known
        axis = known.axis
        return self.node(Alias, proto, (known,), f"{mode} padding", self.facts_of(known), axis=axis)

    def part(self, proto: NodeProto, name: str, channels: Sequence[int]) -> Node:
        """Make a node of one of several values: some of the channels of what is read."""
        source = proto.input[0]
        names = self.named(proto) | {"origin": Origin((self._index,), name)}
        made = Routed(
            inputs=(self.nodes[source],), what=proto.op_type, axis=self.axis(source),
            channels=len(channels), origins=tuple((c,) for c in channels), **names,
        )  # fmt: skip
        return self.enter(made, Facts(channels=len(channels)))

    def opaque(
        self, proto: NodeProto, reason: Reason | None = None, *, keeps: bool = False
    ) -> Node:
        """Make a node that the planner does not look into; see :meth:`unknown`."""
        read = [n for n in (*proto.input, *outer_reads(proto)) if n in self.nodes]
        sources = [self.nodes[name] for name in dict.fromkeys(read)]
        if proto.op_type in {"Shape", "Size"}:
            return self.node(ShapeOf, proto, sources)
        axis = self._axis_from_readers(_first_output(proto))
        return self.unknown(proto, sources, reason, keeps=keeps, axis=axis)

    def again(self, proto: NodeProto) -> Node | None:
        """Make a node of an operation that has been done before on the same values, if it has.

        To the planner it returns what the first one does, so that what reads either can be
        branches of one value. The first operation of a kind is noted, and None returned.
        """
        read = tuple(self._made_by(name) if name in self.nodes else name for name in proto.input)
        given = sorted(attribute.SerializeToString() for attribute in proto.attribute)
        first = self._done.setdefault((proto.op_type, read, tuple(given)), proto.output[0])
        return None if first == proto.output[0] else self.alias(proto, first)

    def _made_by(self, name: str) -> Node:
        value = self.nodes[name]
        while isinstance(value, Alias):
            value = value.inputs[0]
        return value

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

    def axis(self, name: str) -> int | None:
        """Channel axis of a value, from the end."""
        return self.nodes[name].axis

    def shape(self, name: str) -> Shape | None:
        """Shape of a value."""
        return self.shapes.shapes.get(name)

    def channels(self, name: str) -> int | None:
        """Channels of a value."""
        known = self.facts_of(self.nodes[name]).channels
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
        indices = _origin(self.nodes[name]).indices
        return self.graph.node[indices[-1]] if indices else None

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
        for index, proto in enumerate(self.graph.node):
            outer = outer_reads(proto)
            self._captured |= outer
            for name in (*proto.input, *outer):
                if name:
                    self.readers[name].append(index)

    def _behind(self, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """The inputs, and the kinds of operations, that values are computed from."""
        inputs: set[str] = set()
        makers: set[str] = set()
        waiting = [name for name in names if name in self.nodes]
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            maker = self.maker(name)
            if maker is None:
                inputs.add(name)
                continue
            makers.add(maker.op_type)
            fresh = {read for read in maker.input if read in self.nodes} - seen
            seen |= fresh
            waiting += fresh
        return inputs, makers

    def named(self, operation: NodeProto) -> dict[str, Any]:
        """Name the nodes of an operation: it is the one that is lifted now."""
        name = _first_output(operation)
        first = self._paired.get(self._index)
        indices = (self._index,) if first is None else (first, self._index)
        return {
            "key": self._index,
            "order": self._index,
            "where": operation.name or name or operation.op_type,
            "origin": Origin(indices, name),
        }

    def describe(self, operation: NodeProto) -> str:
        """Name an operation as the format does."""
        return operation.op_type

    def _input(self, name: str) -> None:
        lifted = Opaque(
            inputs=(), key=("input", name), order=-1, what=f"input {name}", where=name,
            axis=self._axis_from_readers(name), origin=Origin((), name),
        )  # fmt: skip
        self.nodes[name] = self.enter(lifted)

    def _other_output(self, proto: NodeProto, name: str, first: Node) -> Node:
        names = self.named(proto) | {"origin": Origin((self._index,), name)}
        axis = self._axis_from_readers(name)
        return self.enter(Opaque(inputs=first.inputs, what=proto.op_type, axis=axis, **names))

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


def _first_output(proto: NodeProto) -> str:
    """The first value that an operation returns; empty where it leaves that one out."""
    return proto.output[0] if proto.output else ""
