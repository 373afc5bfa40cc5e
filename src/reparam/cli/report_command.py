"""``reparam report``: a page from stored results."""

from __future__ import annotations

from pathlib import Path

from reparam.cli.groups import argument, option
from reparam.cli.terminal import Terminal
from reparam.report import load_results, merge, render


def report(
    results: list[Path] = argument(
        "Results that demo, bench, quantize, prune or Python left.", "RESULTS..."
    ),
    *,
    out: Path | None = option(
        "HTML file; the first RESULTS with .html if left out.", "PAGE", flags=("--out", "-o")
    ),
) -> None:
    """Draw one page of stored results; nothing is measured again."""
    terminal = Terminal()
    page = out or results[0].with_suffix(".html")
    drawn = render(merge([load_results(file) for file in results]), page)
    terminal.done(f"Drew the page of {', '.join(map(str, results))}")
    terminal.hint("Page:", str(drawn.resolve()))
