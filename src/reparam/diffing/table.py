"""Which function knows an operator of ATen in normal form: it says it itself, by :func:`means`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Kept = TypeVar("Kept", bound=Callable[..., Any])

HANDLERS: dict[str, Callable[..., Any]] = {}
"""By the name of an operator without overload: called with its arguments, forms among them."""


def means(*names: str) -> Callable[[Kept], Kept]:
    """Enter what operators mean, by their names."""

    def enter(handler: Kept) -> Kept:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return enter


def spread(value: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension, where an operator takes one for all."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
