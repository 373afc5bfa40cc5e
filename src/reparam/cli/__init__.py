"""The command line. This room alone prints and exits.

What is of no use raises :class:`~reparam.errors.InputError` where that is found, and what is not
installed a :class:`~reparam.errors.MissingExtraError`; :mod:`reparam.cli.guard` makes one message
and an exit code of whatever was raised. So the functions of this room list none of these.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from reparam._support.optional import require
from reparam.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_NEEDED = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code.

    Args:
        arguments: what follows ``reparam``; by default what the shell gave.

    Returns:
        0 when all went well; 1 when models differ or an export fails; 2 when the input cannot be
        used; 70 for a fault of this package.
    """
    _never_fail_to_print()
    try:
        for package in _NEEDED:
            require(package, extra="cli", purpose="The command line")
    except MissingExtraError as error:
        sys.stderr.write(f"reparam: {error}\n")
        return 2
    from reparam.cli.app import run

    return run(sys.argv[1:] if arguments is None else list(arguments))


def _never_fail_to_print() -> None:
    """Let signs that the terminal's encoding lacks become question marks instead of errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
