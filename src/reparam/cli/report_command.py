"""``reparam report``: a page from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam.cli.terminal import Terminal
from reparam.report import render

__all__ = ["report"]

ResultsArgument = Annotated[
    Path, typer.Argument(metavar="RESULTS", help="A results.json that another command left.")
]
PageOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="PAGE", help="HTML file; RESULTS with .html if left out."),
]


def report(results: ResultsArgument, *, out: PageOption = None) -> None:
    """Draw the page of stored results; nothing is measured again."""
    terminal = Terminal()
    page = render(results, out or results.with_suffix(".html"))
    terminal.done(f"Drew the page of {results}")
    terminal.hint("Page:", str(page.resolve()))
