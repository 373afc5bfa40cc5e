"""Lift a traced torch module into the planner's nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from reparam.algebra import AffineConv
from reparam.errors import InexactError
from reparam.frontends.builder import Builder, Facts, Pads
from reparam.frontends.shapes import Shape
from reparam.frontends.torch.constants import Constants
from reparam.frontends.torch.effects import base_of, is_random, metadata_read, name_of
from reparam.frontends.torch.trace import Trace
from reparam.program import Affine, Alias, Node, Opaque, Program, ShapeOf, Sum
from reparam.reasons import Reason


@dataclass(eq=False)
class Lifted:
    """A lifted trace: the planner's program and the way back to the traced nodes.

    Attributes:
        trace: The trace.
        program: The planner's program.
        constants: What in the trace does not depend on the inputs.
        stacks: For values that only sums read over the axis along which others were joined: these.
        hosts: For transposed convolutions and norms that a function runs, by their order: what
            makes the module that does the same.
        mutations: Order, traced node and base of the value that it changes in place.

    """

    trace: Trace
    program: Program
    constants: Constants
    hosts: dict[int, Callable[[], nn.Module]] = field(default_factory=dict)
    stacks: dict[fx.Node, list[Node]] = field(default_factory=dict)
    mutations: list[tuple[int, fx.Node, fx.Node]] = field(default_factory=list)

    def host_of(self, node: Node) -> nn.Module:
        """The module of a layer that only it itself can run, or of a norm."""
        make = self.hosts.get(node.order)
        return self.trace.module(self.node_of(node)) if make is None else make()

    def node_of(self, node: Node) -> fx.Node:
        """The traced node of a planner node, or of the one that it is a copy of."""
        assert isinstance(node.origin, fx.Node)  # noqa: S101 (this front end's nodes)
        return node.origin

    def value_of(self, node: Node) -> fx.Node:
        """The traced value that is read where the planner reads ``node``.

        A copy of an operation stands in the planner's view alone: what reads it there reads, in the
        trace, what the copy reads, and where a layer pads by itself, what it pads.
        """
        while node.is_copy or node.is_virtual:
            node = node.inputs[0]
        return self.node_of(node)

    def positions(self, node: Node, channels: int) -> int | None:
        """Number of positions of a value of the example, batch included, where that is known."""
        while node.is_virtual:
            node = node.inputs[0]
        known = self.trace.values.get(self.value_of(node))
        if not isinstance(known, Tensor) or known.numel() % channels:
            return None
        return known.numel() // channels

    def reads(self, node: Node) -> Collection[Tensor]:
        """The parameters and buffers that a planner node reads."""
        return node.reads if isinstance(node, Affine) else ()


class Lifter(Builder[fx.Node, fx.Node]):
    """Walk a trace once and make a planner node of every operation.

    The rules for the single operations are in :mod:`reparam.frontends.torch.rules`.

    Attributes:
        remedy: What a user can do where the number of dimensions of a value is not known.
        keeps_activations: Whether the last factor of an activation that is spelt out stays with
            it: engines know activations by all of their steps.

    """

    remedy = "pass example_inputs"
    keeps_activations = False

    def __init__(
        self,
        trace: Trace,
        *,
        training: bool,
        vectors: bool,
        probed: dict[str, AffineConv],
        constants: Constants | None = None,
    ) -> None:
        """Prepare to lift; see :func:`reparam.frontends.torch.rules.lift` for the arguments."""
        super().__init__()
        self.trace = trace
        self.constants = Constants(trace) if constants is None else constants
        self.training = training
        self.vectors = vectors
        self.probed = probed
        self.hosts: dict[int, Callable[[], nn.Module]] = {}
        self._changed = set(map(base_of, trace.changes.values()))
        self._done: dict[Hashable, fx.Node] = {}
        self._numbers: set[fx.Node] = set()
        self._mutations: list[tuple[int, fx.Node, fx.Node]] = []
        self._order = 0

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
            if self._is_number(node):
                self._numbers.add(node)
            rule = None if node in self._numbers else rule_for(self, node)
            lifted: Node | None = None
            if rule is not None:
                before = len(self.made)
                try:
                    lifted = rule(self, node)
                except InexactError as error:
                    lifted = self.opaque(node, error.reason)
                # What can fold folds in each place by itself.
                same = None if isinstance(lifted, Affine | Sum | Alias) else self.again(node)
                if same is not None:
                    self.made[before:], lifted = [same], same
            lifted = lifted or self.opaque(node)
            self.nodes[node] = lifted
            self.note_shape(node, lifted)
        self._pin_mutated()
        program = Program(tuple(self.made), frozenset(self.pinned))
        return Lifted(self.trace, program, self.constants, self.hosts, self.stacks, self._mutations)

    # ---------------------------------------------------------------- what rules make

    def shaped_like(self, node: fx.Node, source: fx.Node, like: fx.Node) -> Node:
        """Make two nodes: one that reads a shape, and one that reads the contents."""
        self.node(ShapeOf, node, (self.nodes[like],), "shape")
        facts = Facts(self.facts_of(self.nodes[like]).rank)
        return self.node(Opaque, node, (self.nodes[source],), None, facts)

    def again(self, node: fx.Node) -> Node | None:
        """Make a node of an operation that has been done before on the same value, if it has.

        To the planner it returns what the first one does, so that what reads either can be
        branches of one value. The first operation of a kind is noted, and None returned.
        """
        if len(node.all_input_nodes) != 1 or not self._repeats(node):
            return None
        source = node.all_input_nodes[0]
        if source not in self.nodes:
            return None
        if self._changed and not self._changed.isdisjoint((base_of(node), base_of(source))):
            return None
        value = self.nodes[source]
        while isinstance(value, Alias):
            value = value.inputs[0]
        first = self._done.setdefault((value, *self._call(node, source)), node)
        return None if first is node else self.alias(node, first)

    def _repeats(self, node: fx.Node) -> bool:
        """Whether an operation returns the same whenever it is called with the same."""
        if node.op != "call_module":
            return not is_random(node)
        module = self.module(node)
        training = any(isinstance(m, _Dropout) and m.training for m in module.modules())
        return not training and next(module.parameters(), None) is None

    def _call(self, node: fx.Node, source: fx.Node) -> tuple[Hashable, ...]:
        """What tells calls apart that have one input: what is called, and how."""
        if node.op == "call_module":
            name = repr(self.module(node))
            return (name[:-2].lower() if name.endswith("()") else name), "((None,), {})"
        named = {k: v for k, v in node.kwargs.items() if (k, v) != ("inplace", False)}
        given = (tuple(n if n is not source else None for n in node.args), named)
        return name_of(node.target), repr(given)

    def opaque(self, node: fx.Node, reason: Reason | None = None, *, keeps: bool = False) -> Node:
        """Make a node that the planner does not look into; see :meth:`unknown`."""
        sources = [self.nodes[s] for s in node.all_input_nodes if s in self.nodes]
        read = metadata_read(node)
        if read == "shape":
            return self.node(ShapeOf, node, sources)
        # Rank, type and device are the same on both sides of a fold: no reader of the value.
        sources = [] if read == "kind" else sources
        return self.unknown(node, sources, reason, keeps=keeps, axis=self.axis_told(node))

    # ---------------------------------------------------------------- what rules ask

    def is_value(self, value: object) -> bool:
        """Whether an argument is a tensor that depends on the input."""
        return isinstance(value, fx.Node) and value in self.nodes and value not in self._numbers

    def known(self, node: fx.Node) -> Facts:
        """What is known of a traced value."""
        return self.facts_of(self.nodes[node])

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a module call calls."""
        return self.trace.module(node)

    def axis_told(self, node: fx.Node) -> int | None:
        """Channel axis of a value of which nothing is known, where a format tells it."""
        del node
        return None

    def shape(self, node: fx.Node) -> Shape | None:
        """Sizes of a value that hold for every input, where a format declares them."""
        del node
        return None

    def keeps_shape(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a value has the axes of one that it is computed from, as a format declares."""
        del node, source
        return False

    def repads(self, node: fx.Node, pads: Pads, mode: str) -> Node | None:
        """Make a value of its own of padding that is not zeros, where a format is written so."""
        del node, pads, mode
        return None

    def layer_name(self, node: fx.Node) -> str:
        """Name a layer that only it itself can run."""
        return f"transposed conv {str(self.describe(node))[-2:]}"

    def note_shape(self, node: fx.Node, lifted: Node) -> None:
        """Take what the example shows of a value."""
        known = self.trace.values.get(node)
        if isinstance(known, Tensor):
            self.facts_of(lifted).rank = known.dim()

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

    def named(self, operation: fx.Node) -> dict[str, Any]:
        """Name the nodes of a traced operation."""
        return {
            "key": self.trace.keys[operation],
            "order": self._order,
            "where": self.where(operation),
            "origin": operation,
        }

    def _pin(self, node: fx.Node) -> None:
        lifted = self.nodes.get(node)
        if lifted is not None:
            self.pinned.add(lifted)

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a value is a size, a type and the like, or computed from such: no tensor."""
        if metadata_read(node) is not None:
            return True
        if node.op == "call_function" and getattr(node.target, "__module__", "") not in _PYTHON:
            return False
        sources = node.all_input_nodes
        return node.op != "output" and bool(sources) and self._numbers.issuperset(sources)

    def _note_mutation(self, order: int, node: fx.Node) -> None:
        target = self.trace.changes.get(node)
        if target is not None:
            self._mutations.append((order, node, base_of(target)))

    def _pin_mutated(self) -> None:
        """Keep values that are changed in place while others still read them."""
        for _, node, base in self._mutations:
            if base.op in {"placeholder", "get_attr"} or _is_read_beside(base, node):
                for value in {base, *(s for s in node.all_input_nodes if base_of(s) is base)}:
                    self._pin(value)


def _is_read_beside(base: fx.Node, change: fx.Node) -> bool:
    """Whether a value is read, itself or through a view, beside what leads to its change."""
    value = base
    while len(value.users) == 1:
        reader = next(iter(value.users))
        if reader is change:
            return False
        if base_of(reader) is not base:
            break
        value = reader
    return True


_Dropout = nn.modules.dropout._DropoutNd  # noqa: SLF001 (the one base of all of them)

_PYTHON = {"_operator", "builtins", "math"}
"""Modules whose functions make numbers of numbers; those of torch may make tensors of them."""

Rule = Callable[[Lifter, fx.Node], Node | None]


def scalar(value: Any) -> float | None:
    """Read a literal number, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
