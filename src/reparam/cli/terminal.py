"""What a person sees: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import math
import time
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_SPOKEN_SECONDS = 10.0
"""Between two notes of how far something is."""
_STYLES = {"title": "bold", "where": "green", "dim": "dim", "stays": "yellow"}


class Terminal:
    """Writes to the two standard streams; plain text where they are no terminal.

    Args:
        as_json: Whether a program reads the results: then :meth:`json` writes, and nothing else
            does to standard output. Else it is the other way around.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._out = Console(highlight=False, quiet=as_json)
        self._err = Console(stderr=True, highlight=False)
        self._mark = "✓" if self._out.encoding.startswith("utf") else "+"

    @property
    def live(self) -> bool:
        """Whether a progress bar can be drawn."""
        return self._err.is_terminal

    def text(self, value: object = "") -> None:
        """A result, as it is: never wrapped, never read as markup."""
        self._out.print(Text(str(value)), soft_wrap=True)

    @property
    def width(self) -> int:
        """Columns of the terminal; 80, or ``COLUMNS``, where there is none."""
        return self._out.width

    def lines(self, lines: Iterable[tuple[str, str]]) -> None:
        """A page of lines, each with what it is, which gives its colour."""
        for text, kind in lines:
            self._out.print(Text(text, style=_STYLES.get(kind, "")), soft_wrap=True)

    def done(self, value: str) -> None:
        """What has been achieved."""
        self._out.print(Text(f"{self._mark} ", style="green") + Text(value), soft_wrap=True)

    def hint(self, label: str, value: str) -> None:
        """What can be done next."""
        self._out.print(Text(f"{label} ", style="dim") + Text(value), soft_wrap=True)

    def note(self, value: str) -> None:
        """What a person may want to know, and a program reading the output must not see."""
        self._aside(Text(value, style="dim"))

    def error(self, value: str) -> None:
        """What went wrong, and what to do."""
        self._aside(Text("reparam: ", style="bold red") + Text(value))

    def _aside(self, text: Text) -> None:
        with suppress(OSError):  # where nobody reads, the exit code has to do
            self._err.print(text, soft_wrap=True)

    def json(self, value: object) -> None:
        """A result for a program; numbers that are not finite are null, as JSON has none."""
        if self._as_json:
            text = json.dumps(_finite(value), indent=2, allow_nan=False)
            Console(highlight=False).print(Text(text), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table with its first column to the left and the others to the right."""
        drawn = Table(
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            header_style="dim",
            show_header=any(columns),
        )
        for index, column in enumerate(columns):
            drawn.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
        for row in rows:
            drawn.add_row(*(Text(cell) for cell in row))
        if title:
            self._out.print(Text(title, style="bold"))
        self._out.print(Padding(drawn, (0, 0, 0, 2), expand=False))

    @contextmanager
    def progress(
        self, label: str, *, spoken: bool = False
    ) -> Iterator[Callable[[float, float, str], None]]:
        """A bar that lives while the block runs, and leaves nothing behind.

        What this package warns of meanwhile is noted; others' warnings are dropped.

        Args:
            label: What is done.
            spoken: Whether to note now and then how far it is, where no bar can be drawn.

        Yields:
            A function to call with what is done, what there is in all, and a short text.
        """
        narrow = Column(no_wrap=True, overflow="ellipsis")
        columns: list[Any] = [
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=narrow),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[detail]}", table_column=narrow),
            TimeElapsedColumn(),
        ]
        bar = Progress(*columns, console=self._err, transient=True, disable=not self.live)
        with bar as progress, self._warnings_noted():
            task = progress.add_task(label, total=None, detail="")
            said = time.monotonic()

            def update(done: float, total: float, detail: str = "") -> None:
                nonlocal said
                progress.update(task, completed=done, total=total, detail=detail)
                if spoken and not self.live and time.monotonic() - said > _SPOKEN_SECONDS:
                    said = time.monotonic()
                    self.note(f"{label}, {done / total:.0%}: {detail}")

            yield update

    @contextmanager
    def _warnings_noted(self) -> Iterator[None]:
        from reparam import FoldWarning
        from reparam.errors import MachineWarning
        from reparam.verifying import NothingShownWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for kind in (FoldWarning, MachineWarning, NothingShownWarning):
                warnings.simplefilter("always", kind)
            warnings.showwarning = lambda message, *_, **__: self.note(f"note: {message}")
            yield


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
