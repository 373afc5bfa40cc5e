"""Keep native libraries from writing into the user's terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["silent"]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Send what libraries write to the error streams of Python and of the process nowhere."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
        _silent_process(nowhere.fileno()),
    ):
        yield


@contextlib.contextmanager
def _silent_process(nowhere: int) -> Iterator[None]:
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # no error stream: nothing to keep silent
        yield
        return
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
