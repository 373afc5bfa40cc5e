"""Who watches the demo, and is told how far it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

__all__ = ["Reporter", "Update"]

Update: TypeAlias = Callable[[float, float, str], None]


class Reporter(Protocol):
    """Whoever watches the story."""

    def step(self, title: str) -> AbstractContextManager[Update]:
        """Begin a step; what is yielded is told how far it is."""

    def outcome(self, text: str) -> None:
        """Hear what a step came to."""
