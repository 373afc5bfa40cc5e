"""Choose among the candidate regions: the fewest layers, never at a higher cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from reparam.graph.ir import Kind, Node, Program
from reparam.planner.candidates import Candidate, Candidates

__all__ = ["Selection", "Veto", "select"]

Veto = Callable[[Candidate], str | None]
"""A front end's objection to a region (a hook, a shared module), or None."""

_Score = tuple[int, float]


@dataclass(eq=False)
class Selection:
    """The regions to fold, in program order, and per node why a region was not possible."""

    regions: list[Candidate] = field(default_factory=list)
    reasons: dict[Node, list[str]] = field(default_factory=dict)
    users: dict[Node, list[Node]] = field(default_factory=dict)

    @property
    def folded(self) -> set[Node]:
        """All nodes inside of regions."""
        return {node for region in self.regions for node in region.nodes}


def select(program: Program, veto: Veto) -> Selection:
    """Cover the program with disjoint regions that remove the most layers.

    A region pays when it holds a convolution or linear layer, removes a layer, and costs neither
    more multiply-adds nor more stored numbers than before. Among the ways to cut a program into
    such regions the one with the fewest layers is taken, then the one that saves the most
    multiply-adds; the choice is exact wherever values are read once, by dynamic programming in
    program order.
    """
    candidates = Candidates(program)
    chosen, score = _best(program, candidates, veto)
    regions: list[Candidate] = []
    done: set[Node] = set()
    del score
    for node in reversed(program.nodes):
        region = chosen.get(node)
        if node not in done and region is not None and not (region.nodes & done):
            regions.append(region)
            done |= region.nodes
    regions.reverse()
    return Selection(regions, candidates.given_up, candidates.users)


def _best(
    program: Program, candidates: Candidates, veto: Veto
) -> tuple[dict[Node, Candidate], dict[Node, _Score]]:
    """For every node the region to end there, if any, and the score of all up to it."""
    chosen: dict[Node, Candidate] = {}
    score: dict[Node, _Score] = {}
    for node in program.nodes:
        # Scores of operands that others read too count where those are decided, not here.
        own = [score[v] for v in dict.fromkeys(node.inputs) if len(candidates.users[v]) == 1]
        best: _Score = (sum(s[0] for s in own), sum(s[1] for s in own))
        for candidate in candidates.found[node]:
            if candidate.expression is None or not _pays(candidate, candidates, veto):
                continue
            here = _saving(candidate)
            if candidates.is_closed(candidate.source, candidate.nodes):
                rest = score[candidate.source]
                here = (here[0] + rest[0], here[1] + rest[1])
            if here > best:
                best = here
                chosen[node] = candidate
        score[node] = best
    return chosen, score


def _saving(candidate: Candidate) -> _Score:
    before, after = candidate.cost, candidate.cost_after
    return before.layers - after.layers, before.macs - after.macs


def _pays(candidate: Candidate, candidates: Candidates, veto: Veto) -> bool:
    """Whether a candidate may become a region; notes the reason where it may not."""
    if candidate.cost.layers <= 1 or not any(node.is_mixing for node in candidate.nodes):
        return False
    before, after = candidate.cost, candidate.cost_after
    reason = None
    if after.macs > before.macs:
        reason = (
            f"one layer would cost more multiply-adds: {after.macs:,.0f} against "
            f"{before.macs:,.0f} per input position"
        )
    elif after.stored > before.stored:
        reason = (
            f"one layer would store more numbers: {after.stored:,} against {before.stored:,}"
        )
    reason = reason or veto(candidate)
    if reason is not None:
        candidates.give_up(candidate.output, reason)
    return reason is None


def is_leftover(node: Node, folded: set[Node]) -> bool:
    """Whether a node is an affine operation that a reader would expect to be folded."""
    return node not in folded and (
        node.is_diagonal or (node.kind is Kind.OPAQUE and node.reason is not None)
    )
