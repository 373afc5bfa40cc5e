"""A plan as text for a person, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Protocol

__all__ = ["render"]


class _Block(Protocol):
    @property
    def where(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def way(self) -> str: ...
    @property
    def work(self) -> float: ...
    @property
    def branches(self) -> float: ...
    @property
    def plain(self) -> float: ...


class _Refusal(Protocol):
    @property
    def where(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def why(self) -> str: ...


def render(blocks: Sequence[_Block], refusals: Sequence[_Refusal]) -> str:
    """Write the blocks with their work, and what stays as it is."""
    lines: list[str] = []
    if blocks:
        rows = [("where", "normalised branches", "runs as", "work", "branches")]
        rows += [
            (b.where, b.what, b.way, f"{b.work / b.plain:.2f}x", f"{b.branches / b.plain:.2f}x")
            for b in blocks
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        work, branches, plain = (
            sum(getattr(b, name) for b in blocks) for name in ("work", "branches", "plain")
        )
        units = "a step of these, in units of one convolution and norm each"
        lines += ["", f"{units}: {work / plain:.2f} merged, {branches / plain:.2f} by branches"]
    if refusals:
        lines += ["", f"left as it is ({len(refusals)}):"]
        for refusal in refusals:
            text = f"{refusal.where}: {refusal.what}: {refusal.why}"
            lines += textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) or "no sums of normalised branches found"
