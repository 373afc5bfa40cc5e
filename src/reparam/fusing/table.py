"""A plan as text for a person, at most 100 columns wide."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from reparam.reasons import Refusal

__all__ = ["render"]

_WIDTH = 100
_MOST_ROWS = 60


class _Region(Protocol):
    @property
    def where(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def into(self) -> str: ...
    @property
    def layers_before(self) -> int: ...
    @property
    def macs_before(self) -> float: ...
    @property
    def macs_after(self) -> float: ...
    @property
    def stored_before(self) -> int: ...
    @property
    def stored_after(self) -> int: ...


def render(regions: Sequence[_Region], refusals: Sequence[Refusal]) -> str:
    """Write the regions, the refusals grouped by reason, and a summary line."""
    lines: list[str] = []
    if regions:
        rows = [(r.where, r.what, r.into, f"{r.layers_before} -> 1", _change(r)) for r in regions]
        lines += _columns(("where", "what", "into", "layers", "mult-adds"), rows)
        lines.append("")
    if refusals:
        lines += [f"left as it is ({len(refusals)}):", *_grouped(refusals), ""]
    lines.append(_summary(regions, refusals))
    return "\n".join(lines)


def _change(region: _Region) -> str:
    if region.macs_before == 0:
        return "-"
    return f"{100 * region.macs_after / region.macs_before:.0f} %"


def _summary(regions: Sequence[_Region], refusals: Sequence[Refusal]) -> str:
    if not regions:
        tail = f"; {len(refusals)} refused" if refusals else ""
        return f"Nothing folds{tail}."
    before = sum(r.layers_before for r in regions)
    stored = sum(r.stored_before - r.stored_after for r in regions)
    return (
        f"{len(regions)} regions fold: {before} operations become {len(regions)}, "
        f"{stored:,} stored numbers fewer; {len(refusals)} refused."
    )


def _columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    shown = rows[:_MOST_ROWS]
    widths = [max(len(row[k]) for row in (header, *shown)) for k in range(len(header))]
    # The first three columns give way where the line would be too long.
    spare = _WIDTH - 2 * (len(widths) - 1) - sum(widths[3:])
    widths[:3] = _fit(widths[:3], spare)
    lines = [*_wrapped(header, widths), "  ".join("-" * w for w in widths)]
    lines += [line for row in shown for line in _wrapped(row, widths)]
    if len(rows) > len(shown):
        lines.append(f"... and {len(rows) - len(shown)} more")
    return lines


def _fit(widths: list[int], spare: int) -> list[int]:
    while sum(widths) > spare:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return widths


def _wrapped(row: Iterable[str], widths: Sequence[int]) -> list[str]:
    """Write one row on as many lines as its longest cell needs; nothing is cut off."""
    cells = [_cell(text, width) for text, width in zip(row, widths, strict=True)]
    return [
        "  ".join(part.ljust(w) for part, w in zip(parts, widths, strict=True)).rstrip()
        for parts in itertools.zip_longest(*cells, fillvalue="")
    ]


def _cell(text: str, width: int) -> list[str]:
    """Break a text where a person would: between words, or behind the dots of a path."""
    if len(text) <= width:
        return [text]
    if " " in text:
        return textwrap.wrap(text, width, subsequent_indent="  ")
    lines = [""]
    for part in text.replace(".", ".\0").split("\0"):
        if len(lines[-1]) + len(part) > width and lines[-1].strip():
            lines.append("  ")
        lines[-1] += part
    return [line[k : k + width] for line in lines for k in range(0, len(line), width)]


def _grouped(refusals: Sequence[Refusal]) -> list[str]:
    lines = []
    for why, times in Counter(r.why for r in refusals).most_common(_MOST_ROWS):
        places = [f"{r.what} at {r.where}" for r in refusals if r.why == why]
        head = places[0] if times == 1 else f"{places[0]} and {times - 1} more like it"
        lines += textwrap.wrap(
            f"{head}: {why}", _WIDTH, initial_indent="  - ", subsequent_indent="    "
        )
    return lines
