"""Candidate regions: for every value the ways to write it as one operator of an earlier value."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from reparam.algebra import (
    Composition,
    Expression,
    Geometry,
    Sum,
    constant_scale,
    layer_arguments,
    pad_leaf,
    picked_leaf,
)
from reparam.errors import InexactError
from reparam.planner.sums import rejoined
from reparam.program import Affine, Alias, HostedInput, Node, Padded, Program, ShapeOf, largest
from reparam.program import Sum as Add
from reparam.reasons import Reason, Why

_LONGEST = 256
"""Nodes in one region at the most: bounds the work on very long affine programs."""


_NUMBERS_OF_A_NORM = 4
"""Numbers that a batch norm stores for each channel: weight, bias, mean and variance."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a piece of program costs.

    Attributes:
        macs: Multiply-adds of its layers per position of the region's input; a stride divides.
        stored: Numbers stored: weights, biases, running statistics.
        layers: Operations executed, those that only pass a value on not counted.

    """

    macs: Fraction | int = 0
    stored: int = 0
    layers: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Add two costs that are counted per the same positions."""
        return Cost(self.macs + other.macs, self.stored + other.stored, self.layers + other.layers)

    def at_stride(self, stride: Iterable[int]) -> Cost:
        """Count the multiply-adds per position before a stride instead of after it."""
        positions = math.prod(stride)
        macs = self.macs if positions == 1 else Fraction(self.macs) / positions
        return Cost(macs, self.stored, self.layers)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One value as an affine operator of an earlier one.

    Attributes:
        output: The value.
        source: The earlier value.
        expression: The operator, or None for the identity.
        nodes: All nodes from behind ``source`` up to and including ``output``.
        cost: What these nodes cost as they stand.
        exposed: Those of the nodes but ``output`` whose shape is read outside of the region.

    """

    output: Node
    source: Node
    expression: Expression | None
    nodes: frozenset[Node]
    cost: Cost
    exposed: frozenset[Node] = frozenset()

    @property
    def geometry(self) -> Geometry:
        """Geometry of the operator; only for one that is not the identity."""
        if self.expression is None:
            msg = "the identity candidate has no geometry of its own"
            raise ValueError(msg)
        return self.expression.geometry

    @property
    def norm(self) -> Affine | None:
        """The batch norm that can take everything else, where no layer is among the nodes."""
        if self.expression is None or not self.geometry.is_diagonal or self.source.is_virtual:
            return None
        if any(n.is_convolution for n in self.nodes):
            return None
        norms = (n for n in self.nodes if isinstance(n, Affine) and n.is_norm and not n.is_copy)
        return min(norms, key=lambda n: n.order, default=None)

    @property
    def leaves_host(self) -> bool:
        """Whether a layer that makes something else of its input is followed by another layer."""

        def entry(node: Node) -> Node:
            value = node.inputs[0]
            while value.is_copy and value in self.nodes:
                value = value.inputs[0]
            return value

        hosted = isinstance(self.source, HostedInput)
        return hosted and any(
            n.is_convolution and not isinstance(entry(n), HostedInput) for n in self.nodes
        )

    @property
    def shifts(self) -> list[Affine]:
        """Additions before it that scales were moved past, with what they are to add."""
        moved = (node.moved for node in self.nodes if isinstance(node, Affine))
        return [m.past for m in moved if m is not None and m.past is not None]

    @property
    def gone(self) -> frozenset[Node]:
        """The operations that are no longer run, or done by a layer: not a norm that stays."""
        return self.nodes - {self.norm}

    @property
    def anchor(self) -> Affine:
        """The operation whose place and name the new layer has: the largest layer, or the norm."""
        # Of layers that make something else of their input, others may read less of the same.
        hosted = isinstance(self.source, HostedInput)
        return self.norm or largest(self.followers(self.source) if hosted else self.nodes)

    @property
    def layer_geometry(self) -> Geometry:
        """Geometry of the layer that would be executed (unequal gaps between taps filled)."""
        return layer_arguments(self.geometry)[1]

    @property
    def pads_twice(self) -> bool:
        """Whether the layer would pad with zeros what is padded with something else already."""
        if not isinstance(self.source, Padded):
            return False
        arguments = layer_arguments(self.geometry)[0]
        pads = arguments.padding
        return isinstance(pads, str) or any(pads) or arguments.pre_pad is not None

    @property
    def cost_after(self) -> Cost:
        """What the one layer, or norm, costs that would replace the nodes."""
        if self.norm is not None:
            return Cost(0, _NUMBERS_OF_A_NORM * self.geometry.out_channels, 1)
        geometry = self.layer_geometry
        return Cost(geometry.weights, geometry.parameters, 1).at_stride(geometry.stride)

    @property
    def axis(self) -> int | None:
        """Position of the channel axis, counted from the end."""
        return next(
            (n.axis for n in self.nodes if isinstance(n, Affine) and n.axis is not None), None
        )

    @property
    def lost_shape(self) -> Node | None:
        """An exposed value that has neither the shape of the source nor that of the output.

        Readers of any other exposed shape then read that of what stands in its place.
        """
        leading = self.leading if self.exposed else ()
        between = (value for value in self.exposed if value not in leading)
        return next((v for v in between if any(n.is_convolution for n in self.followers(v))), None)

    def followers(self, value: Node) -> set[Node]:
        """Those of the nodes that are computed from a value."""
        found: set[Node] = set()
        waiting = [value]
        while waiting:
            before = waiting.pop()
            fresh = [n for n in self.nodes if before in n.inputs and n not in found]
            found.update(fresh)
            waiting += fresh
        return found

    @property
    def leading(self) -> frozenset[Node]:
        """Per-channel operations on the source that all other nodes of the region follow."""
        return frozenset(_passed(self.source, self.nodes))


@dataclass(eq=False)
class Candidates:
    """Find the candidates of every node of a program, and why others were given up."""

    program: Program
    users: dict[Node, list[Node]] = field(init=False)
    found: dict[Node, list[Candidate]] = field(init=False, default_factory=dict)
    given_up: dict[Node, list[Reason]] = field(init=False, default_factory=dict)
    vetoed: list[tuple[Candidate, Reason]] = field(init=False, default_factory=list)
    rejoined: dict[Node, frozenset[Node]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Walk the program once, in order."""
        self.users = self.program.users()
        self.rejoined = rejoined(self.program, self.users)
        for node in self.program.nodes:
            by_source = {c.source: c for c in self._made_of(node)}
            for candidate in list(by_source.values()):
                for longer in self._extend(candidate):
                    by_source.setdefault(longer.source, longer)
            self.found[node] = list(by_source.values())

    def give_up(self, node: Node, reason: Reason) -> None:
        """Note why a region that ends at ``node`` was not possible."""
        reasons = self.given_up.setdefault(node, [])
        if reason not in reasons:
            reasons.append(reason)

    def is_closed(self, value: Node, nodes: frozenset[Node]) -> bool:
        """Whether the contents of ``value`` are read by ``nodes`` alone, or meet again in a sum."""
        return self._is_read_by(value, nodes | self.rejoined.get(value, frozenset()))

    def is_whole(self, candidate: Candidate) -> bool:
        """Whether nothing else reads what is inside, as where a value has not met itself again."""
        inside = candidate.nodes - {candidate.output}
        return all(self._is_read_by(v, candidate.nodes) for v in inside & self.rejoined.keys())

    def _is_read_by(self, value: Node, nodes: frozenset[Node]) -> bool:
        if value in self.program.pinned:
            return False
        return all(user in nodes or isinstance(user, ShapeOf) for user in self.users[value])

    def exposed(self, values: Iterable[Node]) -> frozenset[Node]:
        """Those of the values whose shape is read."""
        return frozenset(v for v in values if any(isinstance(u, ShapeOf) for u in self.users[v]))

    def _made_of(self, node: Node) -> list[Candidate]:
        """A node as an operator of what it reads itself."""
        match node:
            case Affine(inputs=(source,), leaf=leaf):
                return [Candidate(node, source, leaf, frozenset({node}), _own_cost(node))]
            case Alias(inputs=(source,)):
                return [Candidate(node, source, None, frozenset({node}), Cost())]
            case Add():
                return self._sum(node)
            case _:
                return []

    def _sum(self, node: Add) -> list[Candidate]:
        """Sources that all terms have in common, nearest first."""
        per_term: list[dict[Node, Candidate | None]] = []
        for term in node.inputs:
            choices: dict[Node, Candidate | None] = {term: None}
            if self.is_closed(term, frozenset({node})):
                choices |= {c.source: c for c in self.found[term]}
            per_term.append(choices)
        _share_padding(node.inputs, per_term)
        _share_windows(node.inputs, per_term)
        common = [s for s in per_term[0] if all(s in choices for choices in per_term[1:])]
        if not common:
            self.give_up(node, Why.NO_COMMON_SOURCE())
        made = (self._sum_from(node, source, [p[source] for p in per_term]) for source in common)
        return [candidate for candidate in made if candidate is not None]

    def _sum_from(self, node: Add, source: Node, terms: list[Candidate | None]) -> Candidate | None:
        expressions = [None if term is None else term.expression for term in terms]
        known = next((e.geometry for e in expressions if e is not None), None)
        if known is None:
            return None
        axes = {t.axis for t in terms if t is not None and t.expression is not None}
        if len(axes) > 1:
            self.give_up(node, Why.AXES_OF_BRANCHES_DIFFER())
            return None
        try:
            total = Sum.of(
                tuple(
                    _scaled(_or_identity(e, known), c)
                    for e, c in zip(expressions, node.coefficients, strict=True)
                )
            )
        except InexactError as error:
            self.give_up(node, error.reason)
            return None
        nodes = frozenset({node}).union(*(t.nodes for t in terms if t is not None))
        twice = _counted_twice(terms)
        if twice is None:
            return None
        cost = Cost(-twice.macs, -twice.stored, 1 - twice.layers)
        exposed = self.exposed(term for term in node.inputs if term in nodes)
        for term in {id(t): t for t in terms if t is not None}.values():
            cost += term.cost
            exposed |= term.exposed
        candidate = Candidate(node, source, total, nodes, cost, exposed)
        return candidate if self._keeps_shapes(candidate) else None

    def _extend(self, candidate: Candidate) -> list[Candidate]:
        """Carry a candidate on past its source, where the source is read by it alone."""
        source, outer = candidate.source, candidate.expression
        if not self.is_closed(source, candidate.nodes):
            if isinstance(candidate.output, Affine) and any(
                c.expression is not None for c in self.found[source]
            ):
                self.give_up(candidate.output, self._why_open(source, candidate.nodes))
            return []
        longer = []
        for inner in self.found[source]:
            if len(inner.nodes) + len(candidate.nodes) > _LONGEST:
                continue
            expression: Expression | None
            if outer is None or inner.expression is None:
                expression = inner.expression if outer is None else outer
                stride: tuple[int, ...] = () if inner.expression is None else inner.geometry.stride
            else:
                if _differ(candidate.axis, inner.axis):
                    self.give_up(candidate.output, Why.AXES_DIFFER())
                    continue
                try:
                    expression = Composition.of(outer, inner.expression)
                except InexactError as error:
                    self.give_up(candidate.output, error.reason)
                    continue
                stride = inner.geometry.stride
            extended = Candidate(
                candidate.output,
                inner.source,
                expression,
                candidate.nodes | inner.nodes | {source},
                inner.cost + candidate.cost.at_stride(stride),
                candidate.exposed | inner.exposed | self.exposed([source]),
            )
            if self._keeps_shapes(extended):
                longer.append(extended)
        return longer

    def _keeps_shapes(self, candidate: Candidate) -> bool:
        """Whether readers of a shape inside can read another; notes the shape where they cannot."""
        lost = candidate.lost_shape
        if lost is not None:
            self.give_up(candidate.output, Why.SHAPE_IS_READ(value=lost.place))
        return lost is None

    def _why_open(self, value: Node, nodes: frozenset[Node]) -> Reason:
        others = [user for user in self.users[value] if user not in nodes]
        if value in self.program.pinned and not others:
            return Why.IS_SEEN(value=value.place)
        readers = ", ".join(user.place for user in others[:2])
        return Why.ALSO_READ(value=value.place, readers=readers or "others")


def _counted_twice(terms: Iterable[Candidate | None]) -> Cost | None:
    """What is counted twice where terms have nodes in common; None if that is not known."""
    seen: set[Node] = set()
    extra: list[Node] = []
    for term in {id(t): t for t in terms if t is not None}.values():
        extra += seen & term.nodes
        seen |= term.nodes
    affine = [node for node in extra if isinstance(node, Affine)]
    mixing = {node for node in affine if node.is_convolution}
    if len(mixing) > 1 and any(set(n.leaf.geometry.stride) - {1} for n in mixing):
        return None  # positions behind a stride are fewer
    return sum(
        (_own_cost(node) for node in affine), Cost(0, 0, sum(isinstance(n, Add) for n in extra))
    )


def _passed(source: Node, nodes: frozenset[Node]) -> Iterable[Node]:
    while True:
        readers = [n for n in nodes if source in n.inputs]
        if len(readers) != 1 or not (readers[0].is_diagonal or isinstance(readers[0], Alias)):
            return
        source = readers[0]
        yield source


def _own_cost(node: Affine) -> Cost:
    geometry = node.leaf.geometry
    # Only layers count: to call an average or a scale multiply-adds would excuse a dearer layer.
    macs = geometry.weights if node.is_layer else 0
    return Cost(macs, node.stored, 1 + node.computed).at_stride(geometry.stride)


def _share_padding(terms: tuple[Node, ...], per_term: list[dict[Node, Candidate | None]]) -> None:
    """Let branches that read a value also be branches of that value with padding around it.

    The value is the padded one with the padding cropped off, so a 1x1 or identity branch beside a
    convolution with reflected padding becomes a kernel on the padded value.
    """
    padded = {
        s: c
        for choices in per_term
        for s, c in choices.items()
        if isinstance(s, Padded) and c is not None and c.expression is not None
    }
    for source, reader in padded.items():
        crop = pad_leaf(
            reader.geometry.in_channels, tuple((-low, -high) for low, high in source.pads)
        )
        for term, choices in zip(terms, per_term, strict=True):
            plain = source.inputs[0]
            if source in choices or plain not in choices:
                continue
            known = choices[plain]
            if known is None or known.expression is None:
                nodes = frozenset() if known is None else known.nodes
                choices[source] = Candidate(term, source, crop, nodes, Cost())
                continue
            try:
                cropped = Composition.of(known.expression, crop)
            except InexactError:
                continue
            choices[source] = Candidate(term, source, cropped, known.nodes, known.cost)


def _share_windows(terms: tuple[Node, ...], per_term: list[dict[Node, Candidate | None]]) -> None:
    """Let transposed convolutions also be branches of what one reads that has all of their taps."""
    found = {s: c for choices in per_term for s, c in choices.items() if _has_window(s)}
    for wide in found:
        for term, choices in zip(terms, per_term, strict=True):
            for narrow, known in list(choices.items()):
                picked = None if narrow is wide or wide in choices else _picked(wide, narrow)
                if picked is not None and known is not None and known.expression is not None:
                    expression = Composition.of(known.expression, picked)
                    choices[wide] = Candidate(term, wide, expression, known.nodes, known.cost)


def _has_window(value: Node) -> bool:
    return isinstance(value, HostedInput) and value.window is not None


def _picked(wide: Node, narrow: Node) -> Expression | None:
    """What one transposed convolution reads as some of what another does, if it is that."""
    if not isinstance(wide, HostedInput) or not isinstance(narrow, HostedInput):
        return None
    if wide.window is None or narrow.window is None or _read_by(wide) is not _read_by(narrow):
        return None
    (left, every), (right, own) = wide.window, narrow.window
    if left != right or any(set(some) - set(line) for some, line in zip(own, every, strict=True)):
        return None
    places = {taps: k for k, taps in enumerate(itertools.product(*every))}
    taken = [places[taps] for taps in itertools.product(*own)]
    spread = wide.spread or ()
    return picked_leaf(len(spread) // len(places), len(places), taken, len(every))


def _read_by(host: HostedInput) -> Node:
    """The value that a layer reads, behind what passes it on."""
    value = host.inputs[0]
    while isinstance(value, Alias):
        value = value.inputs[0]
    return value


def _or_identity(expression: Expression | None, like: Geometry) -> Expression:
    """Write the branch that passes its input on as an operator on the channels of another."""
    if expression is not None:
        return expression
    return constant_scale(like.in_channels, 1.0)


def _scaled(expression: Expression, factor: float) -> Expression:
    if factor == 1.0:
        return expression
    return Composition.of(constant_scale(expression.geometry.out_channels, factor), expression)


def _differ(first: int | None, second: int | None) -> bool:
    return first is not None and second is not None and first != second
