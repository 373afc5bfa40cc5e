"""What every command keeps, whatever it does: its inputs, and its own names for what it offers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from reparam._support.files import kept
from reparam._support.spelling import spelled
from reparam.errors import InputError

CHECKPOINT_FLAGS = ("--weights", "-w", "--candidate-weights", "--trained")
"""Options that name a file to load, looked at before the packages are imported that load it."""

_OUTPUTS = ("out", "report")

_CALLED_HERE: dict[tuple[str, object], tuple[str, object]] = {
    ("dynamic", False): ("fixed_shapes", True),
    ("input_shapes", ...): ("shape", ...),
    ("image_size", ...): ("input_size", ...),
}
"""Arguments of the library whose option has another name or the opposite meaning."""


class Command(TyperCommand):
    """A command that writes over none of its inputs, and advises what it offers itself."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        for value in _flat(ctx.params.values()):
            _check_text(str(value))
        with kept(_inputs(ctx.params)), spelled(self._spelling):
            return super().invoke(ctx)

    def _spelling(self, name: str, value: object) -> str | None:
        name, value = _CALLED_HERE.get((name, value), (name, value))
        parameter = next((p for p in self.params if p.name == name), None)
        if parameter is None or parameter.param_type_name != "option":
            return None
        if isinstance(value, bool):
            flags = parameter.opts if value else parameter.secondary_opts
            return max(flags, key=len, default=None)
        shown = (parameter.metavar or "VALUE") if value is ... else value
        return f"{max(parameter.opts, key=len)} {shown}"


def _inputs(params: dict[str, Any]) -> Iterator[Path]:
    """Whatever the command line names that may be a file, but for what is to be written."""
    return map(Path, _flat(value for name, value in params.items() if name not in _OUTPUTS))


def _flat(values: Iterable[Any]) -> Iterator[str | Path]:
    """Words and files among the values of options, those of repeated options one by one."""
    for value in values:
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str | Path):
                yield each


def _check_text(word: str) -> None:
    """Refuse bytes that are no text here: engines and formats take names as text alone."""
    if any("\ud800" <= letter <= "\udfff" for letter in word):
        raise InputError(
            f"{word!a} is no text in the encoding of this terminal "
            f"({sys.getfilesystemencoding()}); rename the file, or set LC_ALL=C.UTF-8"
        )


def check_checkpoints(arguments: Iterable[str]) -> None:
    """Look for the files that a command line wants to load."""
    for word, following in pairwise([*arguments, ""]):
        flag, equals, value = word.partition("=")
        if flag not in CHECKPOINT_FLAGS:
            continue
        file = Path(value if equals else following)
        if not file.is_file():
            found = "it is no plain file" if file.exists() else "there is no such file"
            raise InputError(f"cannot read weights from {file} ({flag}): {found}")
