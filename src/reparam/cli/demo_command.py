"""``reparam demo``: the whole story on bundled data, with a page at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from reparam._support.optional import available
from reparam.cli.terminal import Terminal
from reparam.errors import MissingExtraError

__all__ = ["demo"]

_NEEDED = (
    "sklearn",
    "lightning",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "jinja2",
)

OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for what the demo leaves.")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Seconds instead of minutes; too small to mean anything.")
]


class _Watcher:
    """Shows the steps on a terminal, and one line for each when it is done."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def step(self, title: str) -> AbstractContextManager[Callable[[float, float, str], None]]:
        """Draw a bar while the step runs; in a log, say that it begins."""
        if not self._terminal.live:
            self._terminal.note(f"{title} ...")
        return self._terminal.progress(title)

    def outcome(self, text: str) -> None:
        """Leave a line."""
        self._terminal.done(text)


def demo(*, out: OutOption = Path("reparam-demo"), quick: QuickOption = False) -> None:
    """Train a small multi-branch net, fold it, prove it equal, export it and measure it.

    It takes one to three minutes on two cores, needs no network, and leaves a folder with the
    model, the numbers, and a page to look at.
    """
    _check_packages()
    from reparam.cli.demo import FULL, QUICK, caption, run, table

    terminal = Terminal()
    start = time.perf_counter()
    command = f"reparam demo{' --quick' if quick else ''}"
    outcome = run(out, QUICK if quick else FULL, _Watcher(terminal), command=command)
    terminal.text()
    columns, rows = table(outcome.results)
    terminal.table(caption(outcome.results), columns, rows)
    terminal.text()
    terminal.done(f"Done in {time.perf_counter() - start:.0f} s")
    terminal.hint("Page:", str(outcome.page.resolve()))


def _check_packages() -> None:
    """Say all that is missing at once, before anything is trained.

    Raises:
        MissingExtraError: a package that some step needs is not installed.
    """
    missing = [package for package in _NEEDED if not available(package)]
    if missing:
        raise MissingExtraError(", ".join(missing), "all", "The demo")
