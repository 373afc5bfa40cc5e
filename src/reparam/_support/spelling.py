"""How the caller writes an option: as a Python argument, or as its command line calls it.

A message that says what to do names an option. Which one that is, and whether there is one, depends
on who reads it: ``strict=False`` in Python is ``--no-strict`` for some commands and does not exist
for others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Spelling: TypeAlias = Callable[[str, object], str | None]
"""From an argument of the library and its value (``...`` for any) to how it is written, or None."""


def _as_python(name: str, value: object) -> str:
    return f"{name}={'...' if value is ... else repr(value)}"


_SPELLING: ContextVar[Spelling] = ContextVar("spelling", default=_as_python)


def advice(text: str, **options: object) -> str:
    """Name options in an advice as the caller writes them; empty where one is not on offer.

    Args:
        text: The advice, with the name of each option in braces.
        **options: The values that are advised; ``...`` for one that only the caller knows.

    >>> advice("; load with {strict} to take what fits", strict=False)
    '; load with strict=False to take what fits'
    """
    spelling = _SPELLING.get()
    written = {name: spelling(name, value) for name, value in options.items()}
    return "" if None in written.values() else text.format(**written)


@contextmanager
def spelled(spelling: Spelling) -> Iterator[None]:
    """Let advice be written for another reader than one who calls from Python."""
    token = _SPELLING.set(spelling)
    try:
        yield
    finally:
        _SPELLING.reset(token)
