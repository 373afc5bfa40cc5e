"""Read the graph of an ONNX model as words of torch, so that it is lifted like any other trace.

Each operation of the file becomes one call of torch (a word), whose weights are constants of the
file; what has no word is a call that nothing is known of. Every node of the trace remembers the
operations of the file that it stands for, and the name of its value there.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from reparam.frontends.onnx.constants import DEFAULT_DOMAINS, Constants
from reparam.frontends.onnx.nodes import inner_graphs, outer_reads
from reparam.frontends.onnx.numbers import Number
from reparam.frontends.onnx.shapes import Shapes, infer
from reparam.frontends.shapes import Shape
from reparam.reasons import Reason, Why

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def unread(*values: Any) -> Any:
    """Stand for an operation that is no word of torch, in a trace, which nobody runs."""
    raise NotImplementedError(values)


def elementwise(*values: Any, **how: Any) -> Any:
    """Stand in the same way for one that works on every element by itself."""
    raise NotImplementedError(values, how)


@dataclass(eq=False)
class Reading:
    """A graph as a trace.

    Attributes:
        model: The model; it is only read.
        opset: Version of the operations of the default domain.
        shapes: What is known of the values.
        constants: The values that do not depend on the inputs.
        graph: The graph as words of torch, whose constants are numbers among their arguments.
        indices: By node of the trace, the positions in ``graph.node`` of what it stands for.
        names: By node of the trace, the name of its value in the file.
        reasons: Why operations that look foldable are not.
        elementwise: Nodes of the trace that work on every element by itself.
        stand_ins: For operations that read numbers which hold for one size of input only, by their
            positions: the names of these, and numbers that hold for every size.
        readers: For every value the positions of the operations that read it, once each read.

    """

    model: ModelProto
    opset: int
    shapes: Shapes
    constants: Constants
    graph: fx.Graph = field(default_factory=fx.Graph)
    indices: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    names: dict[fx.Node, str] = field(default_factory=dict)
    reasons: dict[fx.Node, Reason] = field(default_factory=dict)
    elementwise: set[fx.Node] = field(default_factory=set)
    stand_ins: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


class Reader:
    """Walks a graph once and writes a word for every operation that is not constant."""

    def __init__(self, model: ModelProto, opset: int, shapes: Shapes, constants: Constants) -> None:
        self.reading = Reading(model, opset, shapes, constants)
        self.graph, self.opset, self.shapes, self.constants = model.graph, opset, shapes, constants
        self.readers = self.reading.readers
        self.makers = {name: proto for proto in model.graph.node for name in proto.output}
        self.outputs = {value.name for value in model.graph.output}
        self._calls = self.reading.graph
        self._values: dict[str, fx.Node] = {}
        self._captured: set[str] = set()
        self._has_integers = any(n.op_type == "DequantizeLinear" for n in model.graph.node)
        self._paired: dict[int, int] = {}
        self._index = 0
        self._inner: dict[int, set[str]] = {}
        for index, proto in enumerate(model.graph.node):
            if any(inner_graphs(proto)):
                self._inner[index] = outer_reads(proto)
                self._captured |= self._inner[index]
            for name in (*proto.input, *self._inner.get(index, ())):
                if name:
                    self.readers[name].append(index)

    @classmethod
    def read(cls, model: ModelProto, opset: int, words: dict[str, Word]) -> Reading:
        """Read the main graph of a model, by the words for the types of its operations."""
        shapes = infer(model)
        reader = cls(model, opset, shapes, Constants(model, shapes, opset))
        reader._run(words)
        return reader.reading

    def _run(self, words: dict[str, Word]) -> None:
        for value in self.graph.input:
            if value.name not in self.constants:
                self._name(self._calls.placeholder(value.name), value.name, ())
        for index, proto in enumerate(self.graph.node):
            self._index = index
            if index in self.constants.nodes:
                continue
            first, *others = proto.output or ("",)
            word = self._word(words, proto)
            if index in self._paired.values():
                continue  # nothing but the operation that it is one with reads its value
            made = word or self.opaque(proto)
            self._name(made, first)
            for k, name in enumerate(others, start=1):
                if name not in self._values and self.is_read(name):
                    self.part(proto, made, k)
        seen = (self.outputs | self._captured) & self._values.keys()
        self._calls.output(tuple(self._values[name] for name in sorted(seen)))

    def _word(self, words: dict[str, Word], proto: NodeProto) -> fx.Node | None:
        read = [name for name in proto.input if name and name not in self.constants]
        known = self._index in self._paired or all(name in self._values for name in read)
        default = proto.domain in DEFAULT_DOMAINS and self._index not in self._inner
        word = words.get(proto.op_type) if default and known else None
        return None if word is None else word(self, proto)

    def _name(self, made: fx.Node, name: str, indices: tuple[int, ...] | None = None) -> None:
        if indices is None:
            first = self._paired.get(self._index)
            indices = (self._index,) if first is None else (first, self._index)
        self.reading.indices[made] = indices
        self.reading.names.setdefault(made, name)
        if name:
            self._values[name] = made

    # ---------------------------------------------------------------- what words write

    def call(self, target: Callable[..., Any] | str, *args: Any, **options: Any) -> fx.Node:
        """Write a call of a function, or of a method by its name."""
        kind = "call_method" if isinstance(target, str) else "call_function"
        made = self._calls.create_node(kind, target)
        made.args, made.kwargs = args, options  # torch.fx looks through those of a new node first
        return made

    def opaque(
        self, proto: NodeProto, reason: Reason | None = None, *, keeps: bool = False
    ) -> fx.Node:
        """Write an operation that is no word, with the reason where it looks foldable.

        ``keeps`` says that it works on every element by itself.
        """
        outer = self._inner.get(self._index, ())
        read = [n for n in (*proto.input, *outer) if n in self._values]
        made = self.call(unread, *(self._values[name] for name in dict.fromkeys(read)))
        if reason is not None:
            self.reading.reasons[made] = reason
        if keeps:
            self.reading.elementwise.add(made)
        return made

    def unnamed(self, made: fx.Node) -> fx.Node:
        """Note a call that returns several values, which alone have names."""
        self._name(made, "")
        return made

    def part(self, proto: NodeProto, whole: fx.Node, position: int) -> fx.Node:
        """Write one of the values of an operation that returns several."""
        name = proto.output[position]
        made = self.call(operator.getitem, whole, position)
        self._name(made, name)
        return made

    def value(self, name: str) -> fx.Node | Number:
        """What a name stands for: a value of the trace, or a constant."""
        return self._values.get(name) or self.number(name)

    def argument(self, name: str) -> Any:
        """The same, or None for what is left out, and whole numbers as they are."""
        if not name or name not in self.constants or self.constants.is_floating(name):
            return self.value(name) if name else None
        return self.constants.numbers(name).tolist()

    def number(
        self, name: str, shape: tuple[int, ...] | None = None,
        load: Callable[[], Tensor] | None = None,
    ) -> Number:  # fmt: skip
        """A constant of the file, as it is there or in another form."""
        constants = self.constants
        return Number(
            name, constants.shape(name) if shape is None else shape,
            load or partial(constants.numbers, name),
        )  # fmt: skip

    def pair(self, second: int) -> None:
        """Note that this operation is one with a later one, which alone reads it."""
        self._paired[second] = self._index

    def paired_with(self) -> NodeProto | None:
        """The earlier operation that this one is one with."""
        first = self._paired.get(self._index)
        return None if first is None else self.graph.node[first]

    def stand_in(self, name: str, numbers: Tensor) -> None:
        """Note numbers that hold for every size of input, where the file has those of one size."""
        self.reading.stand_ins[self._index] = {name: numbers}

    # ---------------------------------------------------------------- what words ask

    def is_value(self, name: str) -> bool:
        """Whether a name stands for something that depends on the inputs."""
        return name in self._values and name not in self.constants

    def shape(self, name: str) -> Shape | None:
        """Shape of a value."""
        return self.shapes.shapes.get(name)

    def rank(self, name: str) -> int | None:
        """Number of dimensions of a value."""
        return self.shapes.rank(name)

    def is_read(self, name: str) -> bool:
        """Whether anything reads a value."""
        return name in self.readers or name in self.outputs

    def only_reader(self, name: str) -> int | None:
        """The position of the operation that alone reads a value, once."""
        readers = self.readers.get(name, [])
        alone = len(readers) == 1 and name not in self.outputs | self._captured
        return readers[0] if alone else None

    def why_not_constant(self, what: str, names: Iterable[str]) -> Reason:
        """The reason why numbers that an operation reads are not constant."""
        if not self.constants.overridable and not self._has_integers:
            return Why.NOT_CONSTANT(what=what)  # without a look at all that is behind
        inputs, makers = self._behind(names)
        if inputs and inputs <= self.constants.overridable:
            return Why.OVERRIDABLE(what=what, name=min(inputs))
        if not inputs and "DequantizeLinear" in makers:
            return Why.QUANTISED_WEIGHT(what=what)
        return Why.NOT_CONSTANT(what=what)

    def _behind(self, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """The inputs, and the kinds of operations, that values are computed from."""
        inputs: set[str] = set()
        makers: set[str] = set()
        waiting = [name for name in names if self.is_value(name)]
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            maker = self.makers.get(name)
            if maker is None:
                inputs.add(name)
                continue
            makers.add(maker.op_type)
            fresh = {read for read in maker.input if self.is_value(read)} - seen
            seen |= fresh
            waiting += fresh
        return inputs, makers


Word = Callable[[Reader, "NodeProto"], "fx.Node | None"]
"""Writes the call of torch that an operation is; None where it is none."""
