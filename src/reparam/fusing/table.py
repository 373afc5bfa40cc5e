"""A plan as a page for a person: what is saved, what folds and what stays; alike places as one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from reparam._support.spelling import advice
from reparam.fusing.grouping import alike, common_name, common_text, without_channels
from reparam.fusing.regions import Region
from reparam.reasons import Refusal

_MOST_LINES = 42
"""Of what folds: with the rest of the page two screens of 40 lines, however large the model."""
_MOST_REASONS = 5
_MOST_LINES_OF_A_REASON = 4
_MOST_PLACES = 2
_LEAST_WIDTH = 50


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a page, and what it is: a terminal colours it after that."""

    text: str = ""
    kind: Literal["title", "plain", "where", "dim", "stays"] = "plain"


class _Plan(Protocol):
    @property
    def regions(self) -> Sequence[Region]: ...
    @property
    def refusals(self) -> Sequence[Refusal]: ...


def page(plan: _Plan, width: int, *, every: bool = False) -> list[Line]:
    """Write what is saved, then what folds, then what stays and why."""
    width = max(width, _LEAST_WIDTH)
    lines = [Line(_title(plan), "title")]
    if plan.regions:
        lines += [Line(), *_savings(plan.regions), Line()]
        lines += _folds(plan.regions, width, every=every)
    if plan.refusals:
        lines += [Line(), Line(f"stays as it is ({_count(len(plan.refusals), 'place')})", "title")]
        lines += _each_stays(plan.refusals, width) if every else _stays(plan.refusals, width)
    return lines


def _title(plan: _Plan) -> str:
    stay = len(plan.refusals)
    if plan.regions:
        folds = _count(len(plan.regions), "region")
        return f"{folds} {'fold' if len(plan.regions) > 1 else 'folds'}, {_stay(stay)}."
    if stay:
        return f"Nothing folds; {_stay(stay)}."
    return "Nothing folds: there is no norm, scale or parallel branch beside a layer to take it."


def _stay(places: int) -> str:
    return f"{places or 'no'} {'place stays' if places < 2 else 'places stay'} as found"


def _count(times: int, what: str) -> str:
    return f"{times} {what}{'' if times == 1 else 's'}"


# ------------------------------------------------------------------------------- what is saved


def _savings(regions: Sequence[Region]) -> list[Line]:
    """The costs of all that folds, before and after."""
    table = [
        ("of what folds", "before", "after", "saved", ""),
        _saving("operations", [(r.layers_before, 1) for r in regions]),
    ]
    macs = [
        (r.macs_before * r.positions, r.macs_after * r.positions)
        for r in regions
        if r.positions is not None
    ]
    if len(macs) == len(regions):
        table.append(_saving("multiply-adds", macs))
    stored = [(r.stored_before * r.bytes_each, r.stored_after * r.bytes_each) for r in regions]
    table.append(_saving("stored", stored, "B"))
    widths = [max(len(row[k]) for row in table) for k in range(5)]
    return [
        Line(
            "  ".join(
                cell.ljust(size) if k == 0 else cell.rjust(size)
                for k, (cell, size) in enumerate(zip(row, widths, strict=True))
            ).rstrip(),
            "dim" if row is table[0] else "plain",
        )
        for row in table
    ]


def _saving(name: str, costs: Sequence[tuple[float, float]], unit: str = "") -> tuple[str, ...]:
    before, after = sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)
    numbers = (_short(number, unit) for number in (before, after, before - after))
    return (name, *numbers, f"{100 * (before - after) / before:.1f} %" if before else "")


def _short(number: float, unit: str) -> str:
    """Write a number with three digits or so: 11.3 M, 244 kB, 196."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * (10 if letter == "k" else 1):
            return f"{number / size:.{1 if number < 100 * size else 0}f} {letter}{unit}"
    return f"{number:,.0f} {unit}".strip()


# -------------------------------------------------------------------------------- what folds


def _folds(regions: Sequence[Region], width: int, *, every: bool) -> Iterator[Line]:
    groups = (
        [[region] for region in regions]
        if every
        else alike(
            regions,
            lambda r: r.where,
            lambda r: (without_channels(r.what), without_channels(r.into), r.layers_before),
        )
    )
    rows = [_row(group, width) for group in groups]
    shown = rows if every else _fitting(rows, [len(group) for group in groups])
    yield Line(_in_columns("what folds", "operations", "multiply-adds", width), "dim")
    for row in shown:
        yield from row
    if len(shown) < len(rows):
        hidden = sum(
            len(group) for row, group in zip(rows, groups, strict=True) if row not in shown
        )
        more = (
            f"... and {_count(hidden, 'region')} more of {_count(len(rows) - len(shown), 'kind')}"
        )
        yield Line(f"  {more}{advice('; {every} tells each', every=True)}", "dim")
    note = "multiply-adds: those of the new layer, in % of those that it replaces"
    yield from (Line(text, "dim") for text in textwrap.wrap(note, width))


def _row(group: Sequence[Region], width: int) -> list[Line]:
    times = f"  x{len(group)}" if len(group) > 1 else ""
    place = common_name([r.where for r in group]) + times
    what, into = common_text([r.what for r in group]), common_text([r.into for r in group])
    head = _in_columns(f"  {place}", f"{group[0].layers_before} -> 1", _shares(group), width)
    becomes = f"{what} -> {into}"
    texts = [becomes] if len(becomes) + 4 <= width else [what, f"-> {into}"]
    wrapped = [line for text in texts for line in _wrap(text, width, "    ", "       ")]
    return [*(Line(text, "where") for text in head.split("\n")), *map(Line, wrapped)]


def _shares(group: Sequence[Region]) -> str:
    shares = [100 * r.macs_after / r.macs_before for r in group if r.macs_before]
    if not shares:
        return "-"
    least, most = f"{min(shares):.0f}", f"{max(shares):.0f}"
    return f"{least} %" if least == most else f"{least}-{most} %"


def _in_columns(name: str, layers: str, macs: str, width: int) -> str:
    """Put a name and two numbers on a line; a name that is too long is broken at its dots."""
    numbers = f"{layers:>10}  {macs:>13}"
    room = width - len(numbers) - 1
    lines = []
    while len(name) > room:
        cut = max(name.rfind(sign, 4, room) + 1 for sign in "./") or room
        lines.append(name[:cut])
        name = f"    {name[cut:]}"
    return "\n".join([*lines, f"{name:<{room}} {numbers}"])


def _fitting(rows: Sequence[list[Line]], sizes: Sequence[int]) -> list[list[Line]]:
    """As many rows as there is room for, those of the most regions first; in their order."""
    room, kept = _MOST_LINES, set()
    for index in sorted(range(len(rows)), key=lambda k: -sizes[k]):
        room -= len(rows[index])
        if room < 0:
            break
        kept.add(index)
    return [row for index, row in enumerate(rows) if index in kept]


# -------------------------------------------------------------------------------- what stays


def _stays(refusals: Sequence[Refusal], width: int) -> Iterator[Line]:
    by_reason: dict[tuple[object, str], list[Refusal]] = {}
    for refusal in refusals:
        key = (refusal.reason.kind, refusal.reason.general)
        by_reason.setdefault(key, []).append(refusal)
    groups = sorted(by_reason.values(), key=lambda group: -len(group))
    for group in groups[:_MOST_REASONS]:
        same = len({r.reason for r in group}) == 1 and not group[0].reason.has_numbers
        why = group[0].why if same else group[0].reason.general
        text = f"{len(group):>5}  {_places(group)}: {why}"
        yield from (
            Line(line, "stays")
            for line in _wrap(text, width, "", " " * 7, most=_MOST_LINES_OF_A_REASON)
        )
    hidden = sum(len(group) for group in groups[_MOST_REASONS:])
    if hidden:
        more = f"{hidden:>5}  for {_count(len(groups) - _MOST_REASONS, 'more reason')}"
        yield Line(f"{more}{advice('; {every} tells each', every=True)}", "dim")


def _places(group: Sequence[Refusal]) -> str:
    kinds = alike(group, lambda r: r.where, lambda r: without_channels(r.what))
    kinds.sort(key=lambda kind: -len(kind))
    shown = kinds[:_MOST_PLACES]
    whats = [common_text([r.what for r in kind]) for kind in shown]
    wheres = [common_name([r.where for r in kind]) for kind in shown]
    if len(set(whats)) == 1:
        text = f"{whats[0]} at {', '.join(wheres)}"
    else:
        text = ", ".join(f"{what} at {where}" for what, where in zip(whats, wheres, strict=True))
    rest = len(group) - sum(map(len, shown))
    return text + (f" and {rest} more" if rest else "")


def _each_stays(refusals: Sequence[Refusal], width: int) -> Iterator[Line]:
    for refusal in refusals:
        text = f"{refusal.what} at {refusal.where}: {refusal.why}"
        yield from (Line(line, "stays") for line in _wrap(text, width, "  ", "      "))


def _wrap(text: str, width: int, first: str, rest: str, most: int | None = None) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, max_lines=most,
        placeholder=" ...", break_on_hyphens=False,
    )  # fmt: skip
