"""``reparam report``: a page from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam.cli.terminal import Terminal
from reparam.report import load_results, merge, render

__all__ = ["report"]

ResultsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RESULTS...", help="Results that demo, bench, quantize, prune or Python left."
    ),
]
PageOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="PAGE", help="HTML file; the first RESULTS with .html if left out."
    ),
]


def report(results: ResultsArgument, *, out: PageOption = None) -> None:
    """Draw one page of stored results; nothing is measured again."""
    terminal = Terminal()
    page = render(merge([load_results(file) for file in results]), out or _beside(results[0]))
    terminal.done(f"Drew the page of {', '.join(map(str, results))}")
    terminal.hint("Page:", str(page.resolve()))


def _beside(results: Path) -> Path:
    return results.with_suffix(".html")
