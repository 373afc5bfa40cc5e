"""Lift a traced torch module into the planner's nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from reparam.algebra import AffineConv, Leaf
from reparam.errors import InexactError
from reparam.graph.constants import Constants
from reparam.graph.effects import base_of, metadata_read, mutated_argument
from reparam.graph.ir import Kind, Node, Program
from reparam.graph.trace import Trace
from reparam.reasons import Reason

__all__ = ["Facts", "Lifted", "Lifter", "lift"]


@dataclass(slots=True)
class Facts:
    """What is known of a value without running the program.

    Attributes:
        rank: Number of its dimensions, or None.
        channels: Size of its channel axis, or None.
        pooled: Whether all of its axes behind that of the channels have the size one.

    """

    rank: int | None = None
    channels: int | None = None
    pooled: bool = False


@dataclass(eq=False)
class Lifted:
    """A lifted trace: the planner's program and the way back to the traced nodes.

    Attributes:
        trace: The trace.
        program: The planner's program.
        origin: For every planner node the traced node it stands for.
        sources: For every node with numbers the parameters and buffers it reads.
        hosts: For transposed convolutions that a function runs: the module that does the same.
        mutations: Order, traced node and base of the value that it changes in place.

    """

    trace: Trace
    program: Program
    constants: Constants
    origin: dict[Node, fx.Node] = field(default_factory=dict)
    sources: dict[Node, set[Tensor]] = field(default_factory=dict)
    hosts: dict[Node, nn.Module] = field(default_factory=dict)
    mutations: list[tuple[int, fx.Node, fx.Node]] = field(default_factory=list)

    def host_of(self, node: Node) -> nn.Module:
        """The module of a layer that only it itself can run."""
        known = self.hosts.get(node)
        return self.trace.module(self.node_of(node)) if known is None else known

    def node_of(self, node: Node) -> fx.Node:
        """The traced node of a planner node, or of the one that it is a copy of."""
        return self.origin[node.twin_of or node]

    def value_of(self, node: Node) -> fx.Node:
        """The traced value that is read where the planner reads ``node``.

        A copy of an operation stands in the planner's view alone: what reads it there reads, in the
        trace, what the copy reads.
        """
        while node.twin_of is not None:
            node = node.inputs[0]
        return self.origin[node]

    def reads(self, node: Node) -> set[Tensor]:
        """The parameters and buffers that a planner node reads."""
        return self.sources.get(node.twin_of or node, set())


class Lifter:
    """Walk a trace once and make a planner node of every operation.

    The rules for the single operations are in :mod:`reparam.graph.rules`; they call back
    :meth:`affine`, :meth:`sum`, :meth:`alias`, :meth:`layout` and :meth:`opaque`.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        training: bool,
        vectors: bool,
        probed: dict[str, AffineConv],
    ) -> None:
        """Prepare to lift; see :func:`lift` for the arguments."""
        self.trace = trace
        self.constants = Constants(trace)
        self.training = training
        self.vectors = vectors
        self.probed = probed
        self.nodes: dict[fx.Node, Node] = {}
        self.facts: dict[Node, Facts] = {}
        self.lifted = Lifted(trace, Program(), self.constants)
        self._order = 0
        self._padded: dict[tuple[Node, tuple[tuple[int, int], ...], str], Node] = {}

    def run(self, rule_for: Callable[[Lifter, fx.Node], Rule | None]) -> Lifted:
        """Lift every node; ``rule_for`` finds the rule of an operation."""
        for order, node in enumerate(self.trace.graph.nodes):
            self._order = order
            if self.constants.is_tensor(node):
                continue
            if node.op == "output":
                for source in node.all_input_nodes:
                    self._pin(source)
                continue
            self._note_mutation(order, node)
            rule = rule_for(self, node)
            lifted: Node | None = None
            if rule is not None:
                try:
                    lifted = rule(self, node)
                except InexactError as error:
                    lifted = self.opaque(node, error.reason)
            lifted = lifted or self.opaque(node)
            self.nodes[node] = lifted
            known = self.trace.values.get(node)
            if isinstance(known, Tensor):
                self.facts_of(lifted).rank = known.dim()
        self._pin_mutated()
        return self.lifted

    # ---------------------------------------------------------------- what rules make

    def affine(  # noqa: PLR0913 (what a rule knows of an operator)
        self, node: fx.Node, source: fx.Node, leaf: Leaf, what: str, *, axis: int | None,
        stored: int, rank: int | None = None, reads: set[Tensor] | None = None,
        padded: Node | None = None,
    ) -> Node:  # fmt: skip
        """Make a node that applies an operator to one value."""
        lifted = self._node(Kind.AFFINE, (padded or self.nodes[source],), node, what)
        lifted.leaf, lifted.axis, lifted.stored = leaf, axis, stored
        self.facts[lifted] = Facts(
            rank or self.facts_of(self.nodes[source]).rank, leaf.geometry.out_channels
        )
        self.lifted.sources[lifted] = reads or set()
        return lifted

    def hosted(self, node: fx.Node, leaf: Leaf, what: str, axis: int, reads: set[Tensor]) -> Node:
        """Make two nodes: what a layer reads from its input, and the layer as an operator on it."""
        sources = tuple(self.nodes[s] for s in node.all_input_nodes if s in self.nodes)
        read = self._node(Kind.OPAQUE, sources, node, f"the input of {what}")
        read.virtual = True
        lifted = self._node(Kind.AFFINE, (read,), node, what)
        lifted.leaf, lifted.axis, lifted.stored = leaf, axis, leaf.geometry.parameters
        self.facts[lifted] = Facts(1 - axis, leaf.geometry.out_channels)
        self.lifted.sources[lifted] = reads
        return lifted

    def padded(
        self, node: fx.Node, source: fx.Node, pads: tuple[tuple[int, int], ...], mode: str
    ) -> Node:
        """Make, or find, the value that a layer with a padding mode pads its input to.

        Layers that pad one value in the same way read one and the same padded value, so that they
        can be branches of each other.
        """
        before = self.nodes[source]
        known = self._padded.get((before, pads, mode))
        if known is None:
            known = self._node(Kind.OPAQUE, (before,), node, f"{mode} padding")
            known.virtual, known.pads, known.padding_mode = True, pads, mode
            self._padded[before, pads, mode] = known
        return known

    def sum(self, node: fx.Node, terms: list[fx.Node], coefficients: list[float]) -> Node:
        """Make a node that adds values."""
        lifted = self._node(Kind.SUM, tuple(self.nodes[t] for t in terms), node, "add")
        lifted.coefficients = tuple(coefficients)
        known = [self.facts_of(self.nodes[t]) for t in terms]
        lifted.axis = next((self.nodes[t].axis for t in terms if self.nodes[t].axis), None)
        self.facts[lifted] = Facts(
            max((f.rank for f in known if f.rank is not None), default=None),
            max((f.channels for f in known if f.channels is not None), default=None),
        )
        return lifted

    def alias(self, node: fx.Node, source: fx.Node) -> Node:
        """Make a node that returns its input."""
        before = self.nodes[source]
        lifted = self._node(Kind.ALIAS, (before,), node, self.describe(node))
        lifted.axis = before.axis
        self.facts[lifted] = self.facts_of(before)
        return lifted

    def layout(
        self, node: fx.Node, source: fx.Node, axis: int, rank: int, *, pooled: bool = False
    ) -> Node:
        """Make a node that moves or averages the elements of each channel by itself.

        Its channel axis is ``axis``, counted from the end.
        """
        before = self.nodes[source]
        lifted = self._node(Kind.LAYOUT, (before,), node, self.describe(node))
        lifted.axis = axis
        self.facts[lifted] = Facts(rank, self.facts_of(before).channels, pooled)
        return lifted

    def shaped_like(self, node: fx.Node, source: fx.Node, like: fx.Node) -> Node:
        """Make two nodes: one that reads a shape, and one that reads the contents."""
        reader = self._node(Kind.OPAQUE, (self.nodes[like],), node, "shape")
        reader.shape_only = True
        lifted = self._node(Kind.OPAQUE, (self.nodes[source],), node, self.describe(node))
        self.facts[lifted] = Facts(self.facts_of(self.nodes[like]).rank)
        return lifted

    def concat(self, node: fx.Node, parts: list[fx.Node]) -> Node:
        """Make a node that joins values along their channel axis."""
        before = [self.nodes[p] for p in parts]
        lifted = self._node(Kind.CONCAT, tuple(before), node, self.describe(node))
        lifted.axis = before[0].axis
        sizes = [self.facts_of(p).channels for p in before]
        total = None if None in sizes else sum(s for s in sizes if s is not None)
        self.facts[lifted] = Facts(self.facts_of(before[0]).rank, total)
        return lifted

    def opaque(self, node: fx.Node, reason: Reason | None = None, *, keeps: bool = False) -> Node:
        """Make a node that the planner does not look into.

        ``keeps`` says that it works on every element by itself, so that the axes stay in place.
        """
        sources = [self.nodes[s] for s in node.all_input_nodes if s in self.nodes]
        read = metadata_read(node)
        if read == "kind":
            # Rank, type and device are the same on both sides of a fold: no reader of the value.
            sources = []
        lifted = self._node(Kind.OPAQUE, tuple(sources), node, self.describe(node))
        lifted.reason = reason
        lifted.shape_only = read == "shape"
        if keeps and sources:
            lifted.axis = sources[0].axis
            before = self.facts_of(sources[0])
            self.facts[lifted] = Facts(before.rank, before.channels, before.pooled)
        return lifted

    # ---------------------------------------------------------------- what rules ask

    def facts_of(self, node: Node) -> Facts:
        """What is known of a value."""
        return self.facts.setdefault(node, Facts())

    def known(self, node: fx.Node) -> Facts:
        """What is known of a traced value."""
        return self.facts_of(self.nodes[node])

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a module call calls."""
        return self.trace.module(node)

    def is_value(self, value: object) -> bool:
        """Whether an argument is a tensor that depends on the input."""
        return isinstance(value, fx.Node) and value in self.nodes

    def describe(self, node: fx.Node) -> str:
        """Name an operation as a person would."""
        if node.op == "call_module":
            return type(self.module(node)).__name__
        if node.op == "placeholder":
            return f"input {node.target}"
        return str(getattr(node.target, "__name__", node.target))

    def where(self, node: fx.Node) -> str:
        """Say where an operation is: the path of its module."""
        if node.op == "call_module":
            key = self.trace.keys[node]
            return key.target
        return self.trace.stacks[node][-1].path or "the model"

    # ---------------------------------------------------------------- internals

    def _node(self, kind: Kind, inputs: tuple[Node, ...], node: fx.Node, what: str) -> Node:
        lifted = Node(kind, inputs, self.trace.keys[node], self._order, what, self.where(node))
        self.lifted.program.nodes.append(lifted)
        self.lifted.origin[lifted] = node
        return lifted

    def _pin(self, node: fx.Node) -> None:
        lifted = self.nodes.get(node)
        if lifted is not None:
            self.lifted.program.pinned.add(lifted)

    def _note_mutation(self, order: int, node: fx.Node) -> None:
        target = mutated_argument(node, self.trace.module)
        if target is not None:
            self.lifted.mutations.append((order, node, base_of(target)))

    def _pin_mutated(self) -> None:
        """Keep values that are changed in place while others still read them."""
        for _, node, base in self.lifted.mutations:
            if len(base.users) > 1 or base.op in {"placeholder", "get_attr"}:
                for value in {base, *(s for s in node.all_input_nodes if base_of(s) is base)}:
                    self._pin(value)


Rule = Callable[[Lifter, fx.Node], Node | None]


def lift(
    trace: Trace,
    *,
    training: bool = False,
    vectors: bool = False,
    probed: dict[str, AffineConv] | None = None,
) -> Lifted:
    """Lift a trace.

    Args:
        trace: What was traced.
        training: Read the running statistics of BN layers in training mode too.
        probed: Operators of modules that could not be traced, by path.
        vectors: Take the outputs of linear layers for ``(N, C)`` where nothing says otherwise.

    """
    from reparam.graph.rules import rule_for

    return Lifter(trace, training=training, vectors=vectors, probed=probed or {}).run(rule_for)


def scalar(value: Any) -> float | None:
    """Read a literal number, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
