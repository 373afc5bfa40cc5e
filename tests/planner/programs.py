"""Programs written by hand, how they run, and every way to cut one into regions.

Maps are ``(N, C, L)``, so the channel axis is -2; after a layout node ``(N, L, C)``, axis -1.
Numbers are small and whole, so that a folded region is equal to what it replaces, bit for bit.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st

from reparam import algebra
from reparam.algebra import AffineConv, Geometry, Leaf, compose, evaluate, layer_arguments, parallel
from reparam.errors import InexactError
from reparam.program import (
    Affine,
    Alias,
    Concat,
    Layout,
    Node,
    Opaque,
    Program,
    ShapeOf,
    Sum,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from reparam.algebra import Rows

__all__ = ["Region", "Writer", "best_score", "programs", "regions_of", "run", "total_cost"]


# ------------------------------------------------------------------------------ writing


class Readable(Program):
    """A program that a failing example shows line by line."""

    def __repr__(self) -> str:
        lines = []
        for node in self.nodes:
            operator = f" {node.leaf.geometry}" if isinstance(node, Affine) else ""
            bias = ", bias" if isinstance(node, Affine) and node.leaf.geometry.bias else ""
            seen = "  <- seen from outside" if node in self.pinned else ""
            inputs = ", ".join(v.where for v in node.inputs)
            lines.append(f"{node.where}({inputs}){operator}{bias}{seen}")
        return "\n".join(["", *lines])

    def _repr_pretty_(self, printer: Any, _: object) -> None:
        """Show the same in Hypothesis' reports, which otherwise take a dataclass apart."""
        printer.text(repr(self))


@dataclass(eq=False)
class Writer:
    """Writes a program node by node; every method returns the node it wrote."""

    width: int = 4
    nodes: list[Node] = field(default_factory=list)
    channels: dict[Node, int] = field(default_factory=dict)
    input: Node = field(init=False)

    def __post_init__(self) -> None:
        self.input = self._node(Opaque, (), "input", self.width)

    def conv(
        self,
        x: Node,
        out: int | None = None,
        size: int = 1,
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> Node:
        """A convolution, by default one that keeps the number of channels and the size."""
        cin = self.channels[x]
        cout = cin if out is None else out
        weight = torch.randint(-2, 3, (cout, cin // groups, size)).double()
        shift = torch.randint(-2, 3, (cout,)).double() if bias else None
        padding = (size - 1) // 2 if padding is None else padding
        op = algebra.conv(weight, shift, stride=stride, padding=padding, groups=groups)
        return self._affine(x, op, "conv", op.geometry.parameters)

    def norm(self, x: Node) -> Node:
        """A batch normalisation: four stored numbers a channel; it can be divided by exactly."""
        width = self.channels[x]
        numbers = 2.0 ** torch.randint(0, 3, (width,)), torch.randint(1, 4, (width,))
        op = algebra.scale(*(n.double() for n in numbers))
        return self._affine(x, op, "batch norm", 4 * width, is_norm=True)

    def add(self, *terms: Node, coefficients: tuple[float, ...] | None = None) -> Node:
        factors = coefficients or (1.0,) * len(terms)
        return self._node(Sum, terms, "add", self.channels[terms[0]], coefficients=factors)

    def alias(self, x: Node) -> Node:
        return self._node(Alias, (x,), "dropout", self.channels[x])

    def relu(self, x: Node) -> Node:
        return self._node(Opaque, (x,), "relu", self.channels[x])

    def shape(self, x: Node) -> Node:
        """Read the shape of a value."""
        return self._node(ShapeOf, (x,), "shape", self.channels[x])

    def swap(self, x: Node) -> Node:
        """Move the channels to the end, or back."""
        axis = -3 - (x.axis or 0)
        return self._node(Layout, (x,), "permute", self.channels[x], axis=axis)

    def cat(self, *parts: Node) -> Node:
        return self._node(Concat, parts, "cat", sum(self.channels[p] for p in parts))

    def pin(self, *nodes: Node) -> Program:
        """Say that values are seen from outside, and hand the program out."""
        return Readable(tuple(self.nodes), frozenset(nodes))

    def _affine(
        self, x: Node, op: AffineConv, what: str, stored: int, *, is_norm: bool = False
    ) -> Node:
        def load(rows: Rows | None) -> AffineConv:
            return op if rows is None else op.rows(*rows)

        leaf, channels = Leaf(op.geometry, load), op.geometry.out_channels
        own = {"leaf": leaf, "stored": stored, "is_norm": is_norm}
        return self._node(Affine, (x,), what, channels, **own)

    def _node(
        self, kind: type, inputs: tuple[Node, ...], what: str, channels: int, **own: Any
    ) -> Node:
        number = len(self.nodes)
        name = f"{what}{number}"
        own = {"axis": inputs[0].axis if inputs else -2, **own}
        node = kind(inputs=inputs, key=name, order=number, what=what, where=name, **own)
        self.nodes.append(node)
        self.channels[node] = channels
        return node


# ------------------------------------------------------------------------------ running


def run(program: Program, x: Tensor, replaced: dict[Node, tuple[Node, AffineConv]]) -> dict:
    """Run a program: all values by node, regions in one step where ``replaced`` names them."""
    values: dict[Node, Tensor] = {}
    for node in _sorted(program):
        if not node.inputs:
            values[node] = x
        elif node in replaced:
            source, op = replaced[node]
            values[node] = _act(op, values[source], source.axis)
        elif all(v in values for v in node.inputs):
            values[node] = _run_node(node, [values[v] for v in node.inputs])
    return values


def _sorted(program: Program) -> list[Node]:
    known: list[Node] = []
    waiting = list(program.nodes)
    while waiting:
        ready = next(n for n in waiting if all(v in known for v in n.inputs))
        waiting.remove(ready)
        known.append(ready)
    return known


def _run_node(node: Node, inputs: list[Tensor]) -> Tensor:
    match node:
        case Affine(leaf=leaf):
            return _act(evaluate(leaf), inputs[0], node.axis)
        case Sum(coefficients=coefficients):
            total = inputs[0] * coefficients[0]
            for value, factor in zip(inputs[1:], coefficients[1:], strict=True):
                total = total + value * factor
            return total
        case Concat():
            return torch.cat(inputs, node.axis or 0)
        case Layout():
            return inputs[0].transpose(1, 2)
        case _:
            return inputs[0].relu() if node.what == "relu" else inputs[0]


def _act(op: AffineConv, x: Tensor, axis: int | None) -> Tensor:
    """Apply an operator along the channel axis."""
    if op.geometry.dims:
        assert axis == -2
        return op(x)
    return op(x.movedim(axis or 0, -1)).movedim(-1, axis or 0)


# ------------------------------------------------------------------------------ all regions


@dataclass(frozen=True)
class Region:
    """One way to replace nodes by one layer, with what that saves per position of the input.

    ``biases`` are the numbers of its bias, which may take the place of single ones.
    """

    output: Node
    source: Node
    nodes: frozenset[Node]
    macs: Fraction
    stored: int
    layers: int
    biases: int


def regions_of(program: Program) -> list[Region]:
    """Every region that pays, found by trying all pairs of values; no candidates, no cleverness."""
    rates = _rates(program)
    found = []
    for source, output in itertools.combinations(program.nodes, 2):
        nodes = _between(program, source, output)
        if nodes and _is_closed(program, nodes, output):
            geometry = _geometry(program, source, output, nodes)
            if geometry is not None:
                found.append(_priced(source, output, nodes, geometry, rates))
    return [r for r in found if _pays(r)]


def best_score(regions: list[Region]) -> tuple[Fraction, int]:
    """Most multiply-adds, then layers, that disjoint regions can save."""

    def search(rest: list[Region], used: frozenset[Node]) -> tuple[Fraction, int]:
        if not rest:
            return (Fraction(0), 0)
        first, *others = rest
        best = search(others, used)
        if not first.nodes & used:
            macs, layers = search(others, used | first.nodes)
            best = max(best, (macs + first.macs, layers + first.layers))
        return best

    return search(regions, frozenset())


def _pays(region: Region) -> bool:
    takes = any(map(_is_layer, region.nodes)) or _is_onto_norm(region.nodes)
    return takes and region.layers > 0 and region.macs >= 0 and region.stored >= -region.biases


def _rates(program: Program) -> dict[Node, Fraction]:
    """Positions of a value per position of the program's input."""
    rates: dict[Node, Fraction] = {}
    for node in _sorted(program):
        before = rates[node.inputs[0]] if node.inputs else Fraction(1)
        step = math.prod(node.leaf.geometry.stride) if isinstance(node, Affine) else 1
        rates[node] = before / step
    return rates


def total_cost(program: Program) -> tuple[Fraction, int, int]:
    """Multiply-adds per position of the input, stored numbers and layers of a program."""
    rates = _rates(program)
    costs = [_cost(node, rates) for node in program.nodes]
    return tuple(sum(part) for part in zip(*costs, strict=True))  # type: ignore[return-value]


def _cost(node: Node, rates: dict[Node, Fraction]) -> tuple[Fraction, int, int]:
    """Multiply-adds of layers with weights, stored numbers, operations executed."""
    if isinstance(node, Affine):
        macs = rates[node] * node.leaf.geometry.weights if _is_layer(node) else Fraction(0)
        return macs, node.stored, 1
    return Fraction(0), 0, int(isinstance(node, Sum))


def _is_onto_norm(nodes: Iterable[Node]) -> bool:
    """Whether norms and sums of norms are all that there is, so that one of them takes the rest."""
    affine = [n for n in nodes if isinstance(n, Affine)]
    norms = any(n.is_norm and not n.is_copy for n in affine)
    return norms and all(n.is_diagonal for n in affine)


def _is_layer(node: Node) -> bool:
    return isinstance(node, Affine) and node.is_convolution and node.stored > 0


def _between(program: Program, source: Node, output: Node) -> frozenset[Node]:
    """Everything on a path from one value to another; nothing if other values come in."""
    below = {source}
    for node in program.nodes:
        if any(v in below for v in node.inputs):
            below.add(node)
    above, waiting = set(), [output]
    while waiting:
        node = waiting.pop()
        if node not in above and node is not source:
            above.add(node)
            waiting.extend(node.inputs)
    nodes = frozenset(above & below)
    foldable = all(isinstance(n, Affine | Sum | Alias) for n in nodes)
    inputs = {v for n in nodes for v in n.inputs}
    return nodes if output in nodes and foldable and inputs <= nodes | {source} else frozenset()


def _is_closed(program: Program, nodes: frozenset[Node], output: Node) -> bool:
    inner = nodes - {output}
    if inner & program.pinned:
        return False
    return all(n in nodes for n in program.nodes if any(v in inner for v in n.inputs))


def _geometry(
    program: Program, source: Node, output: Node, nodes: frozenset[Node]
) -> Geometry | None:
    """The operator from source to output, composed forwards; None where that is refused."""
    made: dict[Node, Geometry | None] = {source: None}  # None: the identity
    try:
        for node in (n for n in _sorted(program) if n in nodes):
            before = [made[v] for v in node.inputs]
            if isinstance(node, Sum):
                made[node] = _sum(node, before)
            elif isinstance(node, Affine):
                made[node] = _compose(node.leaf.geometry, before[0])
            else:
                made[node] = before[0]
    except InexactError:
        return None
    return made[output]


def _compose(outer: Geometry, inner: Geometry | None) -> Geometry:
    if inner is None:
        return outer
    dims = max(outer.dims, inner.dims)
    return compose(outer.in_dims(dims), inner.in_dims(dims))


def _sum(node: Sum, terms: list[Geometry | None]) -> Geometry:
    known = [t for t in terms if t is not None]
    if not known:
        msg = "a sum of a value with itself alone"
        raise InexactError(msg)
    width = known[0].in_channels
    plain = Geometry.pointwise(width, width, dims=0, groups=width)
    dims = max(t.dims for t in known)
    total, *rest = [(t or plain).in_dims(dims) for t in terms]
    for other in rest:
        total = parallel(total, other)
    assert len(node.coefficients) == len(terms)
    return total


def _priced(
    source: Node,
    output: Node,
    nodes: frozenset[Node],
    geometry: Geometry,
    rates: dict[Node, Fraction],
) -> Region:
    costs = [_cost(node, rates) for node in nodes]
    layer = layer_arguments(geometry)[1]
    onto_norm = _is_onto_norm(nodes)
    macs = 0 if onto_norm else rates[output] * layer.weights
    stored = 4 * geometry.out_channels if onto_norm else layer.parameters
    return Region(
        output,
        source,
        nodes,
        sum((c[0] for c in costs), Fraction(0)) - macs,
        sum(c[1] for c in costs) - stored,
        sum(c[2] for c in costs) - 1,
        layer.out_channels if layer.bias else 0,
    )


# ------------------------------------------------------------------------------ random programs


@st.composite
def programs(
    draw: st.DrawFn, *, most: int = 8, alone: bool = False, thirds: bool = False
) -> Program:
    """Draw a program.

    Args:
        draw: Hypothesis' own.
        most: Number of steps; one may be a whole block.
        alone: Every value is read once, but for the start of branches.
        thirds: Also strides of 3, whose prices no floating-point number holds exactly.

    """
    strides = (1, 1, 1, 2, 3) if thirds else (1, 1, 1, 2)
    write = Writer(width=draw(st.sampled_from([4, 2, 1])))
    values = [write.input]
    kinds = ["conv", "block", "branches", "norm", "alias", "relu", *([] if alone else ["add"] * 3)]
    for _ in range(draw(st.integers(1, most))):
        x = values[-1] if alone or draw(st.booleans()) else draw(st.sampled_from(values))
        kind = draw(st.sampled_from(kinds))
        if kind == "conv":
            values.append(_draw_conv(draw, write, x, strides))
        elif kind == "block":
            values.append(write.norm(_draw_conv(draw, write, x, strides)))
        elif kind == "branches":
            values.append(_draw_branches(draw, write, x))
        elif kind == "add":
            values.append(_draw_sum(draw, write, [v for v in values if _fits(write, v, x)]))
        else:
            values.append(getattr(write, kind)(x))
    unread = [v for v in values if not any(v in n.inputs for n in write.nodes)]
    seen = [] if alone else draw(st.lists(st.sampled_from(values), max_size=2))
    return write.pin(*unread, *seen)


def _draw_sum(draw: st.DrawFn, write: Writer, like: list[Node]) -> Node:
    terms = draw(st.lists(st.sampled_from(like), min_size=2, max_size=3))
    factors = draw(st.sampled_from([None, (1.0, -1.0, 2.0)[: len(terms)]]))
    return write.add(*terms, coefficients=factors)


def _draw_conv(draw: st.DrawFn, write: Writer, x: Node, strides: tuple[int, ...]) -> Node:
    size = draw(st.sampled_from([1, 3, 1, 2]))
    out = draw(st.sampled_from([write.channels[x], 1, 2, 4, 8]))
    return write.conv(
        x,
        out,
        size,
        stride=draw(st.sampled_from(strides)),
        padding=draw(st.sampled_from([(size - 1) // 2, 0])),
        bias=draw(st.booleans()),
    )


def _draw_branches(draw: st.DrawFn, write: Writer, x: Node) -> Node:
    """A sum of branches of ``x``, each a few layers that nothing else reads."""
    width = write.channels[x]
    terms = []
    for _ in range(draw(st.integers(1, 3))):
        branch = x
        shape = draw(st.sampled_from(["conv norm", "norm", "", "down up", "down norm up norm"]))
        middle = draw(st.sampled_from([1, 2, 8]))
        for word in shape.split():
            if word == "norm":
                branch = write.norm(branch)
            else:
                out = {"conv": width, "down": middle, "up": width}[word]
                branch = write.conv(branch, out, draw(st.sampled_from([1, 1, 3])))
        terms.append(branch)
    return write.add(x, *terms) if draw(st.booleans()) else write.add(*terms)


def _fits(write: Writer, left: Node, right: Node) -> bool:
    if write.channels[left] != write.channels[right]:
        return False
    sizes = zip(_sizes_of(left), _sizes_of(right), strict=True)
    return all(a == b for a, b in sizes)


def _sizes_of(node: Node) -> Iterator[int]:
    """Sizes of a value for inputs of several sizes."""
    for n in range(60, 72):
        size, at = n, node
        chain = []
        while at.inputs:
            chain.append(at)
            at = at.inputs[0]
        for step in reversed(chain):
            if isinstance(step, Affine) and step.leaf.geometry.dims:
                (size,) = step.leaf.geometry.output_size((size,))
        yield size
