"""The plan on a page: the net as a column from input to output, then every place in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reparam.report._markup import element, text, typeset
from reparam.report.numbers import count
from reparam.report.rows import legend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.report.results import CostRecord, PlaceRecord, PlanRecord

__all__ = ["plan_section", "plan_sentence"]

_MOST = 40
"""Places that are drawn at once; the others unfold."""
_MOST_ROWS = 20
"""Of the tables; where there are more, the drawing stands for them until they are unfolded."""
_FOLDS, _STAYS, _PLAIN = "folds", "stays", "plain"
_TONES = {_FOLDS: "deploy", _STAYS: "train", _PLAIN: "comparator"}


def plan_section(plan: PlanRecord) -> dict[str, Any]:
    """The sentence, the drawing, and the rows of both tables."""
    return {
        "sentence": plan_sentence(plan).replace("*", ""),
        "drawing": _drawing(plan.column) if plan.column else "",
        "folded": len(plan.regions) + len(plan.refusals) > _MOST_ROWS and plan.column,
        "regions": [
            {
                "where": region.where,
                "what": typeset(region.what),
                "into": typeset(region.into),
                "cells": _costs(region.before, region.after),
            }
            for region in plan.regions
        ],
        "refusals": plan.refusals,
    }


def plan_sentence(plan: PlanRecord) -> str:
    """How many operations become how many, and how much stays; numbers between asterisks."""
    before = sum(region.before.layers for region in plan.regions)
    after = sum(region.after.layers for region in plan.regions)
    folded, left = len(plan.regions), len(plan.refusals)
    told = f"{_plural(left, 'place')} {'was' if left == 1 else 'were'} left as found."
    if not folded:
        return f"Nothing folds; {told}" if left else "Nothing folds."
    sentence = (
        f"{_plural(folded, 'region')} {'folds' if folded == 1 else 'fold'}: "
        f"*{count(before)}* operations become *{count(after)}*."
    )
    return f"{sentence} {told}" if left else sentence


def _drawing(column: Sequence[PlaceRecord]) -> str:
    """The places from top to bottom, what is alike once, with what each mark means."""
    kinds = dict.fromkeys((_FOLDS, _STAYS, _PLAIN), 0)
    for place in column:
        kinds[_kind(place)] += place.times
    meant = {
        _FOLDS: f"{count(kinds[_FOLDS])} become one layer each",
        _STAYS: f"{count(kinds[_STAYS])} {'stays' if kinds[_STAYS] == 1 else 'stay'}: "
        "point at one, or tap it, for the reason",
        _PLAIN: f"{count(kinds[_PLAIN])} {'is a layer' if kinds[_PLAIN] == 1 else 'are layers'} "
        "with nothing to fold",
    }
    entries = [
        (element("span", class_=f"swatch {kind} role-{_TONES[kind]}"), words)
        for kind, words in meant.items()
        if kinds[kind]
    ]
    drawn = _list(column[:_MOST])
    if len(column) > _MOST:
        head = element("summary", text(f"{len(column) - _MOST} more kinds of places"))
        drawn += element("details", head, _list(column[_MOST:]))
    return legend(entries) + drawn


def _list(places: Sequence[PlaceRecord]) -> str:
    return element("ol", *map(_place, places), class_="column")


def _place(place: PlaceRecord) -> str:
    kind = _kind(place)
    many = " many" if place.times > 1 else ""
    what, was = (place.into, f"was {place.what}") if place.into else (place.what, "")
    lines = [element("span", text(typeset(what)), class_="layer")]
    if was:
        lines.append(element("span", text(typeset(was)), class_="detail"))
    if place.why:
        lines.append(element("span", text("stays"), class_="detail"))
        lines.append(element("span", text(typeset(place.why)), class_="tip", role="tooltip"))
    box = element(
        "div", *lines, class_=f"operation {kind}{many}", tabindex=0 if place.why else None
    )
    times = element("b", text(f"×{place.times}")) if place.times > 1 else ""
    fewer = element("span", text(f"{place.operations} → 1"), class_="fewer") if place.into else ""
    name = element("div", element("code", text(place.where)), times, fewer, class_="place-name")
    return element("li", box, name, class_=f"role-{_TONES[kind]}")


def _kind(place: PlaceRecord) -> str:
    return _FOLDS if place.into else _STAYS if place.why else _PLAIN


def _costs(before: CostRecord, after: CostRecord) -> list[dict[str, str]]:
    return [
        _change(before.layers, after.layers),
        _change(before.stored, after.stored),
        _change(round(before.multiply_adds), round(after.multiply_adds)),
    ]


def _change(before: int, after: int) -> dict[str, str]:
    return {"shown": f"{count(before)} → {count(after)}", "sort": str(before)}


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
