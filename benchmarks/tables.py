"""Markdown tables between markers of a page, written from committed results and never by hand.

A page holds ``<!-- NAME -->`` before and ``<!-- /NAME -->`` after each table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from reparam._support.files import write_text

__all__ = ["ROOT", "fill", "markdown"]

ROOT = Path(__file__).resolve().parents[1]


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table: the first column to the left, numbers to the right.

    >>> print(markdown(["net", "ms"], [["A0", 6.3]]))
    | net | ms |
    |---|---:|
    | A0 | 6.3 |

    """
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    text = [f"| {' | '.join(line)} |" for line in lines]
    text.insert(1, "|---|" + "---:|" * (len(header) - 1))
    return "\n".join(text)


def fill(page: Path, name: str, table: str, *, check: bool = False) -> bool:
    """Put a table between the markers of a page; with ``check`` only compare.

    Returns:
        Whether the page held this very table already.

    Raises:
        ValueError: The page has no such markers.

    """
    content = page.read_text(encoding="utf-8")
    before, opened, rest = content.partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition(f"<!-- /{name} -->")
    if not opened or not closed:
        msg = f"{page} has no markers <!-- {name} --> and <!-- /{name} --> around a table"
        raise ValueError(msg)
    fresh = f"{before}{opened}\n{table}\n\n{closed}{after}"
    if fresh != content and not check:
        write_text(page, fresh)
    return fresh == content
