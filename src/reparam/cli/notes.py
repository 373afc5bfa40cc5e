"""Warnings of the library, told as notes."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import reparam
from reparam.verifying import NothingShownWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.cli.terminal import Terminal

__all__ = ["warnings_noted"]


@contextmanager
def warnings_noted(terminal: Terminal) -> Iterator[None]:
    """Tell on standard error what this package warned of; others' warnings are dropped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        for kind in (reparam.FoldWarning, NothingShownWarning):
            warnings.simplefilter("always", kind)
        yield
    for warning in caught:
        terminal.note(f"note: {warning.message}")
