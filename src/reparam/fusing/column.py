"""A model as a column of places from input to output: what folds, what stays and why, the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from reparam.fusing.grouping import alike, common_name, common_text, without_channels
from reparam.program import Affine, Program
from reparam.reasons import Refusal

if TYPE_CHECKING:
    from reparam.fusing.regions import Region


class _Plan(Protocol):
    @property
    def regions(self) -> Sequence[Region]: ...
    @property
    def refusals(self) -> Sequence[Refusal]: ...


@dataclass(frozen=True, slots=True)
class Place:
    """A place of a model, or several that are alike.

    Attributes:
        where: Its name, with a star for what differs among several.
        times: How many there are.
        what: What it is.
        operations: How many operations one of them has.
        into: The layer that it becomes; empty where nothing folds.
        why: Why it stays as it is; empty where it folds, or has nothing to fold.

    """

    where: str
    times: int
    what: str
    operations: int
    into: str
    why: str


def column(plan: _Plan, programs: Iterable[Program]) -> list[Place]:
    """List what a plan found in its programs, in the order in which it runs, alike places as one.

    Args:
        plan: What folds and what stays.
        programs: What it was found in, in order.

    """
    order: dict[str, int] = {}
    layers: dict[str, str] = {}
    for node in (node for program in programs for node in program.nodes):
        order.setdefault(node.where, len(order))
        if isinstance(node, Affine) and node.is_layer:
            layers.setdefault(node.where, str(node.leaf.geometry))

    def at(names: Iterable[str]) -> float:
        names = list(names)
        mine = [order[n] for n in names if n in layers] or [order[n] for n in names if n in order]
        return min(mine, default=math.inf)

    told = {part for region in plan.regions for part in region.parts}
    told |= {refusal.where for refusal in plan.refusals}
    places = [(at(r.parts), _folding(r), "") for r in plan.regions]
    places += [(at([r.where]), _staying(r), r.reason.general) for r in plan.refusals]
    places += [
        (order[where], Place(where, 1, what, 1, "", ""), "")
        for where, what in layers.items()
        if where not in told
    ]
    places.sort(key=lambda entry: entry[0])
    groups = alike(
        places,
        lambda entry: entry[1].where,
        lambda entry: (*_kind(entry[1]), entry[2]),
    )
    return [_as_one([place for _, place, _ in group], group[0][2]) for group in groups]


def _folding(region: Region) -> Place:
    return Place(region.where, 1, region.what, region.layers_before, region.into, "")


def _staying(refusal: Refusal) -> Place:
    return Place(refusal.where, 1, refusal.what, 1, "", refusal.why)


def _kind(place: Place) -> tuple[str, str, int]:
    return without_channels(place.what), without_channels(place.into), place.operations


def _as_one(group: Sequence[Place], why: str) -> Place:
    return Place(
        where=common_name([place.where for place in group]),
        times=len(group),
        what=common_text([place.what for place in group]),
        operations=group[0].operations,
        into=common_text([place.into for place in group]),
        why=group[0].why if len({place.why for place in group}) == 1 else why,
    )
