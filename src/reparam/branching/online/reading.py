"""Find the parts of a traced module that are sums of normalised convolutions of one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from torch import fx, nn

from reparam.algebra import Geometry, compose, parallel
from reparam.branching.online.pieces import Operand, Piece, Reader, is_layer
from reparam.branching.online.steps import Kind, Step
from reparam.errors import InexactError
from reparam.frontends.torch.effects import base_of
from reparam.frontends.torch.trace import Trace


@dataclass(eq=False)
class Found:
    """Operations that run as one.

    Attributes:
        nodes: The operations, in program order; the last is the output.
        source: The value that they read.
        steps: What they compute.
        operands: What they read besides.

    """

    nodes: list[fx.Node]
    source: fx.Node
    steps: tuple[Step, ...]
    operands: list[Operand]


def regions_in(trace: Trace, watched: set[str], *, single: bool = False) -> list[Found]:
    """Find regions in a trace, none of which shares an operation with another.

    Args:
        trace: The trace.
        watched: Paths of modules with hooks, whose operations have to run as they are.
        single: Take single normalised layers, too, and not only sums of branches.

    """
    return _Finder(trace, watched, single=single).regions()


class _Finder:
    def __init__(self, trace: Trace, watched: set[str], *, single: bool) -> None:
        self._trace = trace
        self._single = single
        self._order = {node: k for k, node in enumerate(trace.graph.nodes)}
        self._changes = [
            (self._order[node], base_of(target)) for node, target in trace.changes.items()
        ]
        reader = Reader(trace, watched)
        read = ((node, reader.piece(node)) for node in trace.graph.nodes)
        self._pieces = {node: piece for node, piece in read if piece is not None}

    def regions(self) -> list[Found]:
        found: list[Found] = []
        taken: set[fx.Node] = set()
        for node in reversed(self._trace.graph.nodes):
            if node in self._pieces and node not in taken:
                region = self._ending_at(node)
                if region is not None and not taken & set(region.nodes):
                    found.append(region)
                    taken.update(region.nodes)
        return found[::-1]

    def _ending_at(self, end: fx.Node) -> Found | None:
        """The smallest region worth merging that ends at an operation."""
        members = {end}
        lone = None
        while True:
            sources = {s for n in members for s in self._pieces[n].sources} - members
            if len(sources) == 1 and self._is_worth_it(members):
                region = self._region(members, next(iter(sources)))
                if region is not None:
                    return region
            inner = [n for n in sources if n in self._pieces and set(n.users) <= members]
            if not inner:
                return lone
            if self._single and self._pieces[end].kind is Kind.NORM and len(members) == 1:
                lone = self._region(members, next(iter(sources)))
            members.add(max(inner, key=self._order.__getitem__))

    def _is_worth_it(self, members: set[fx.Node]) -> bool:
        pieces = [self._pieces[n] for n in members]
        kinds = {piece.kind for piece in pieces}
        sums = any(piece.kind is Kind.SUM and len(piece.sources) > 1 for piece in pieces)
        return Kind.NORM in kinds and (sums or (self._single and Kind.LAYER in kinds))

    def _region(self, members: set[fx.Node], source: fx.Node) -> Found | None:
        nodes = sorted(members, key=self._order.__getitem__)
        if self._is_disturbed(nodes, source):
            return None
        builder = _Builder(source, self._pieces)
        for start in self._starts(nodes, source):
            try:
                return Found(nodes, source, *builder.build(nodes, start))
            except InexactError:
                continue
        return None

    def _starts(self, nodes: list[fx.Node], source: fx.Node) -> list[Geometry]:
        """The input as an operator: its channels and dimensions, as a layer that reads it says."""
        for node in nodes:
            piece = self._pieces[node]
            if source not in piece.sources:
                continue
            if piece.layer is not None:
                g = piece.layer
                return [
                    Geometry.pointwise(
                        g.in_channels, g.in_channels, dims=g.dims, groups=g.in_channels
                    )
                ]
        for node in nodes:
            piece = self._pieces[node]
            if piece.kind is Kind.NORM and source in piece.sources and piece.layer is None:
                module: Any = self._trace.root.get_submodule(str(piece.operands[0]))
                channels = int(module.num_features)
                dims = {nn.BatchNorm1d: (0, 1), nn.BatchNorm3d: (3,)}.get(type(module), (2,))
                return [
                    Geometry.pointwise(channels, channels, dims=d, groups=channels) for d in dims
                ]
        return []

    def _is_disturbed(self, nodes: list[fx.Node], source: fx.Node) -> bool:
        """Whether something is changed in place that the operations read or compute."""
        first, last = self._order[nodes[0]], self._order[nodes[-1]]
        inner = set(nodes)
        base = base_of(source)
        return any(
            (first <= when <= last and changed is base)
            or (changed in inner and when > last and changed is not nodes[-1])
            for when, changed in self._changes
        )


class _Builder:
    """Make steps of operations, or raise InexactError where they are not one convolution."""

    def __init__(self, source: fx.Node, pieces: dict[fx.Node, Piece]) -> None:
        self._source = source
        self._pieces = pieces

    def build(
        self, nodes: list[fx.Node], start: Geometry
    ) -> tuple[tuple[Step, ...], list[Operand]]:
        self._steps = [Step(Kind.INPUT, start)]
        self._operands: list[Operand] = []
        self._places = {self._source: 0}
        for node in nodes:
            self._steps.append(self._step(self._pieces[node]))
            self._places[node] = len(self._steps) - 1
        return tuple(self._steps), self._operands

    def _step(self, piece: Piece) -> Step:
        inputs = tuple(self._places[source] for source in piece.sources)
        before = [self._steps[i] for i in inputs]
        if piece.layer_for is not None:
            layer = piece.layer_for(before[0].geometry.out_channels)
            if not is_layer(layer):
                raise InexactError(f"{layer} is no layer with this kernel alone")
            piece = replace(piece, layer=layer)
        if piece.kind is Kind.NORM and piece.operands[0] in self._operands:
            raise InexactError("a norm that runs twice follows one value after the other")
        geometry = self._geometry(piece, [step.geometry for step in before])
        level = max(step.level for step in before) + (piece.kind is Kind.NORM)
        return Step(
            piece.kind, geometry, inputs, piece.layer,
            tuple(None if o is None else self._place(o) for o in piece.operands),
            piece.coefficients, piece.value, level,
        )  # fmt: skip

    def _place(self, operand: Operand) -> int:
        if operand not in self._operands:
            self._operands.append(operand)
        return self._operands.index(operand)

    def _geometry(self, piece: Piece, before: list[Geometry]) -> Geometry:
        if piece.kind is Kind.SUM:
            return reduce(parallel, before)
        if piece.kind is Kind.NORM:
            return replace(before[0], bias=True)
        assert piece.layer is not None  # noqa: S101 (all other kinds have one)
        if piece.kind is Kind.SCALE:
            channels = before[0].out_channels
            if piece.layer.in_channels not in {1, channels} or (
                piece.layer.in_channels > 1 and piece.layer.dims != before[0].dims
            ):
                raise InexactError(
                    f"a factor for {piece.layer} is not one for each channel of {before[0]}"
                )
            return before[0]
        return compose(piece.layer, before[0])
