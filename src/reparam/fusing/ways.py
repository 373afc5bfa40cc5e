"""Choose what folds in every way through the code of a model."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from reparam.frontends.torch.decisions import goes_another_way
from reparam.frontends.torch.lift import Lifted
from reparam.fusing.place import blocks_of
from reparam.fusing.sites import ModuleSite, described
from reparam.fusing.vetoes import Vetoes
from reparam.planner import Candidate, Selection
from reparam.reasons import Reason, Why

__all__ = ["Selected", "select_alike"]

Keys = frozenset[Hashable]
Chooser = Callable[
    [Lifted, Callable[[Candidate], Reason | None]], tuple[Selection, list[ModuleSite]]
]
"""Chooses what folds in one way, of what is not objected to."""


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """What was chosen in one way through the code.

    Attributes:
        vetoes: What the front end objects to there.
        selection: The choice.
        found: How the model is edited for it.
        may_fold: The operations of all regions that could have been chosen.

    """

    vetoes: Vetoes
    selection: Selection
    found: list[ModuleSite]
    may_fold: set[Keys]


def select_alike(
    ways: list[Lifted], vetoes_of: Callable[[Lifted], Vetoes], choose: Chooser
) -> Selected:
    """Choose the same in every way through the code; return it as the first way has it."""
    present: list[set[Hashable]] = [set(way.trace.keys.values()) for way in ways]
    unwritable = [_unwritable(ways), *[_Unwritable({}, {})] * (len(ways) - 1)]
    possible: list[set[Keys]] = []
    while True:
        selected = [
            _select(choose, way, vetoes_of(way), forwards, present, possible)
            for way, forwards in zip(ways, unwritable, strict=True)
        ]
        folds = [{one.keys for one in each.found} for each in selected]
        uneven = {
            keys
            for keys in set[Keys]().union(*folds)
            if any(keys & there and keys not in f for there, f in zip(present, folds, strict=True))
        }
        if not uneven:
            return selected[0]
        if not possible:
            possible = [each.may_fold for each in selected]
        else:
            largest = {keys for keys in uneven if not any(keys < other for other in uneven)}
            possible = [each - largest for each in possible]


def _select(
    choose: Chooser, way: Lifted, vetoes: Vetoes, unwritable: _Unwritable,
    present: list[set[Hashable]], possible: list[set[Keys]],
) -> Selected:  # fmt: skip
    """Choose what folds in one way, of what may fold in every one.

    Args:
        choose: Chooses what folds.
        way: The way.
        vetoes: What the front end objects to there.
        unwritable: Forwards that cannot be rewritten.
        present: The operations of every way.
        possible: What may fold in every way, where that is known.

    """
    may_fold: set[Keys] = set()

    def veto(region: Candidate) -> Reason | None:
        keys = frozenset(node.key for node in region.nodes)
        folds_there = [keys in folds for folds in possible] or [keys <= o for o in present]
        if any(keys & there and not f for there, f in zip(present, folds_there, strict=True)):
            return Why.NOT_IN_EVERY_WAY()
        reason = vetoes(region) or unwritable.reason(way, region)
        if reason is None:
            may_fold.add(keys)
        return reason

    selection, found = choose(way, veto)
    return Selected(vetoes, selection, found, may_fold)


@dataclass(frozen=True, slots=True)
class _Unwritable:
    """Forwards that cannot be rewritten, by path, each with the reason; less may fold without.

    Attributes:
        deciding: Those that go another way in another call, also as a part of another forward.
        varying: Those that get other plain values at other sizes of the model's inputs.

    """

    deciding: dict[str, str]
    varying: dict[str, str]

    def reason(self, way: Lifted, region: Candidate) -> Reason | None:
        """Why a region cannot be folded, if it needs one of them rewritten."""
        if not self.deciding and not self.varying:
            return None
        for path, block in blocks_of([described(way, region)]).items():
            whys = [self.varying.get(path), *map(self.deciding.get, (path, *block.inlined))]
            for why in filter(None, whys):
                return Why.NOT_REWRITTEN(block=path or "the model", found=why)
        return None


def _unwritable(ways: list[Lifted]) -> _Unwritable:
    """What cannot be rewritten of the first way, which is the one that is written."""
    trace = ways[0].trace
    others = [w.trace for w in ways[1:] if w.trace.plain_arguments() == trace.plain_arguments()]
    varying = {
        frame.call.path
        for frame in (trace.frame.all_calls() if trace.frame and others else ())
        for other in others
        for its in other.calls_of(frame.call.path)
        if its.call == frame.call and its.plain_arguments() != frame.plain_arguments()
    }
    return _Unwritable(
        {path: goes_another_way(place) for path, place in trace.deciding().items()},
        dict.fromkeys(varying, "it is called with other numbers for inputs of other sizes"),
    )
