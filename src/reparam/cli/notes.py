"""Warnings of the library, told as notes."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import reparam
from reparam.errors import MachineWarning
from reparam.verifying import NothingShownWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.cli.terminal import Terminal

__all__ = ["warnings_noted"]


@contextmanager
def warnings_noted(terminal: Terminal) -> Iterator[None]:
    """Tell on standard error what this package warned of; others' warnings are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in (reparam.FoldWarning, MachineWarning, NothingShownWarning):
            warnings.simplefilter("always", kind)
        warnings.showwarning = lambda message, *_, **__: terminal.note(f"note: {message}")
        yield
