"""Choose among the candidate regions: the least work, then the fewest layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from reparam.planner.candidates import Candidate, Candidates
from reparam.planner.moves import Direction, Move, moved
from reparam.program import Affine, Node, Program, ShapeOf
from reparam.reasons import Reason, Why

Veto = Callable[[Candidate], Reason | None]
"""A front end's objection to a region (a hook, a shared module), or None."""

_Score = tuple[Fraction | int, int]
"""Multiply-adds saved per position of the program's input, then layers removed."""


@dataclass(eq=False)
class Selection:
    """The regions to fold, in program order, and why others were not possible.

    Attributes:
        program: The program with the operations moved that fold elsewhere.
        regions: What folds.
        reasons: Per node why a region that ends there was given up.
        users: Per node what reads it.
        vetoed: Regions that the algebra allows and the front end does not.
        kept: By the key of an operation that would have moved: why a region with a copy of it is
            not allowed.

    """

    program: Program
    regions: list[Candidate] = field(default_factory=list)
    reasons: dict[Node, list[Reason]] = field(default_factory=dict)
    users: dict[Node, list[Node]] = field(default_factory=dict)
    vetoed: list[tuple[Candidate, Reason]] = field(default_factory=list)
    kept: dict[Hashable, Reason] = field(default_factory=dict)

    @property
    def folded(self) -> set[Node]:
        """All nodes inside of regions."""
        return {node for region in self.regions for node in region.nodes}


def select(program: Program, veto: Veto) -> Selection:
    """Cover the program with disjoint regions that save the most.

    A region pays when it holds a convolution or linear layer, or else a batch norm, that takes the
    rest, removes a layer, and costs neither more multiply-adds nor more stored numbers than before.
    Among the ways to cut a program into such regions the one that saves the most multiply-adds is
    taken, then the one with the fewest layers: a wide bottleneck is not merged where its folded
    halves are cheaper. The choice among the candidates is exact, by dynamic programming in program
    order.
    """
    excluded: set[tuple[Hashable, Direction]] = set()
    kept: dict[Hashable, Reason] = {}
    while True:
        candidate_program, moves = moved(program, excluded)
        selection = _select_once(candidate_program, veto)
        failed = _not_folded(moves, selection.folded)
        if not failed:
            selection.kept = kept
            return selection
        excluded |= {(move.node.key, move.direction) for move in failed}
        for move in failed:
            copies = set(move.copies)
            objections = (why for region, why in selection.vetoed if copies & region.nodes)
            for why in objections:
                kept.setdefault(move.node.key, why)


def _not_folded(moves: list[Move], folded: set[Node]) -> list[Move]:
    """Moved operations of which a copy does not fold: those must stay where they stand."""
    moved_on = {move.node: move for move in moves}
    return [move for move in moves if not _is_gone(move, moved_on, folded)]


def _is_gone(move: Move, moved_on: dict[Node, Move], folded: set[Node]) -> bool:
    """Whether every copy of an operation folds, where it was moved to or from there on."""
    return all(
        _is_gone(moved_on[copy], moved_on, folded) if copy in moved_on else copy in folded
        for copy in move.copies
    )


def _select_once(program: Program, veto: Veto) -> Selection:
    candidates = Candidates(program)
    chosen = _best(program, candidates, veto)
    regions: list[Candidate] = []
    done: set[Node] = set()
    for node in reversed(program.nodes):
        region = chosen.get(node)
        if node not in done and region is not None and not (region.nodes & done):
            regions.append(region)
            done |= region.nodes
    regions.reverse()
    return Selection(program, regions, candidates.given_up, candidates.users, candidates.vetoed)


def _best(program: Program, candidates: Candidates, veto: Veto) -> dict[Node, Candidate]:
    """For every node the region to end there, if any.

    A region is closed, so its nodes lie on every way from them out of the program: they are below
    its output in the tree in which a node hangs from the next one that all its readers lead to.
    The best choice for a node's subtree is then that of its children, or a region that ends at the
    node together with the best choices for what hangs from the region.
    """
    children = _children(program, candidates.users)
    rates = _rates(program)
    chosen: dict[Node, Candidate] = {}
    score: dict[Node, _Score] = {}
    for node in program.nodes:
        best = _total(score[child] for child in children[node])
        for candidate in candidates.found[node]:
            whole = candidate.expression is not None and candidates.is_whole(candidate)
            if not whole or not _pays(candidate, candidates, veto):
                continue
            inside = candidate.nodes
            hanging = (v for n in inside for v in children[n] if v not in inside)
            macs, layers = _saving(candidate)
            own = (rates[candidate.source] * macs, layers)
            here = _total([own, *(score[v] for v in hanging)])
            if here > best:
                best = here
                chosen[node] = candidate
        score[node] = best
    return chosen


def _total(scores: Iterable[_Score]) -> _Score:
    macs: Fraction | int = 0
    layers = 0
    for more, further in scores:
        macs += more
        layers += further
    return macs, layers


def _rates(program: Program) -> dict[Node, Fraction | int]:
    """Positions of each value per position of the program's input, where strides tell."""
    rates: dict[Node, Fraction | int] = {}
    for node in program.nodes:
        before = rates[node.inputs[0]] if node.inputs else 1
        positions = math.prod(node.leaf.geometry.stride) if isinstance(node, Affine) else 1
        rates[node] = before if positions == 1 else Fraction(before) / positions
    return rates


def _children(program: Program, users: dict[Node, list[Node]]) -> dict[Node, list[Node]]:
    """Hang every node from the next one that all its readers lead to (its post-dominator).

    Values that are seen from outside, and those whose readers part for good, hang from nothing.
    Readers of a shape are none: a region may swallow the value.
    """
    tree = _Tree()
    children: dict[Node, list[Node]] = {node: [] for node in program.nodes}
    for node in reversed(program.nodes):
        readers = (
            [] if node in program.pinned else [u for u in users[node] if not isinstance(u, ShapeOf)]
        )
        parent: Node | None = readers[0] if readers else None
        for reader in readers[1:]:
            parent = tree.meeting(parent, reader)
        tree.hang(node, parent)
        if parent is not None:
            children[parent].append(node)
    return children


class _Tree:
    """Nodes that hang from one another; the root, None, is the outside."""

    def __init__(self) -> None:
        self._parents: dict[Node, Node | None] = {}
        self._depths: dict[Node | None, int] = {None: 0}

    def hang(self, node: Node, parent: Node | None) -> None:
        self._parents[node], self._depths[node] = parent, self._depths[parent] + 1

    def meeting(self, left: Node | None, right: Node | None) -> Node | None:
        """The nearest that both hang from, or are."""
        while left is not right:
            if right is None or (left is not None and self._depths[left] >= self._depths[right]):
                left, right = right, left
            right = self._parents[right] if right is not None else None
        return left


def _saving(candidate: Candidate) -> _Score:
    before, after = candidate.cost, candidate.cost_after
    return before.macs - after.macs, before.layers - after.layers


def _dearer_at_borders(candidate: Candidate) -> bool:
    """Whether one layer would run on more positions than layers that it replaces.

    Where padding makes an output larger than its input, only layers behind it run on all of the
    result's positions; the new layer must not cost more than those.
    """
    affine = [n for n in candidate.nodes if isinstance(n, Affine)]
    growing = [n for n in affine if any(e > -1 for e in n.leaf.geometry.extent)]
    if not growing:
        return False
    early = {n for n in candidate.nodes if candidate.followers(n) & set(growing)}
    late = [n.leaf.geometry.weights for n in affine if n.stored and n not in early]
    return candidate.layer_geometry.weights > sum(late)


def _bias_numbers(candidate: Candidate) -> int:
    """Numbers of the new layer's bias: it may take the place of single ones, for a pass less."""
    geometry = candidate.layer_geometry
    return geometry.out_channels if geometry.bias else 0


def _pays(candidate: Candidate, candidates: Candidates, veto: Veto) -> bool:
    """Whether a candidate may become a region; notes the reason where it may not."""
    if candidate.cost.layers <= 1:
        return False
    if not any(node.is_layer for node in candidate.nodes) and candidate.norm is None:
        return False
    before, after = candidate.cost, candidate.cost_after
    reason = None
    if after.macs > before.macs:
        reason = Why.MORE_WORK(after=float(after.macs), before=float(before.macs))
    elif _dearer_at_borders(candidate):
        reason = Why.MORE_WORK_AT_BORDERS()
    elif after.stored - before.stored > _bias_numbers(candidate):
        reason = Why.MORE_NUMBERS(after=after.stored, before=before.stored)
    elif candidate.pads_twice:
        reason = Why.PADS_TWICE(padding=candidate.source.what)
    if reason is None:
        reason = veto(candidate)
        if reason is not None:
            candidates.vetoed.append((candidate, reason))
    if reason is not None:
        candidates.give_up(candidate.output, reason)
    return reason is None
