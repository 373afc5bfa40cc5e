"""What an online plan tells: its records, and a table of at most 100 columns for a person."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from reparam.branching.select import BranchRefusal

OnlineRefusal = BranchRefusal
"""A sum of branches that stays as it is, and why."""


@dataclass(frozen=True, slots=True)
class OnlineBlock:
    """A part of a block that runs merged.

    Attributes:
        where: Path of the module.
        what: Its branches, in the field's terms.
        way: How it runs.
        shape: Shape of its input that the work is counted for.
        work: Multiply-adds of a training step, or what takes as long.
        branches: The same for running every branch by itself.
        plain: The same for one convolution with one batch norm.

    """

    where: str
    what: str
    way: str
    shape: tuple[int, ...]
    work: float
    branches: float
    plain: float


def render(blocks: Sequence[OnlineBlock], refusals: Sequence[OnlineRefusal]) -> str:
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
