"""Warnings of the library, told as notes."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import reparam

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.cli.terminal import Terminal

__all__ = ["fold_warnings_noted"]


@contextmanager
def fold_warnings_noted(terminal: Terminal) -> Iterator[None]:
    """Tell on standard error what folding warned of; other packages' warnings are dropped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", reparam.FoldWarning)
        yield
    for warning in caught:
        terminal.note(f"note: {warning.message}")
