"""Which part of a model may be folded: the argument ``where``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from reparam._arguments import Kind, shown
from reparam.errors import InputError

__all__ = ["EVERYTHING", "WHERE", "Chosen", "Where"]

Where: TypeAlias = str | type[nn.Module] | Callable[[str, Any], bool] | Sequence[Any]
"""Names or patterns of modules, classes of modules, or a function of name and module."""


def _flaw(where: Any) -> str | None:
    if isinstance(where, list | tuple | set | frozenset):
        if not where:
            return shown(where)
        return next((flaw for flaw in map(_flaw, where) if flaw is not None), None)
    return None if isinstance(where, str) or callable(where) else shown(where)


WHERE = Kind("a name or pattern, a class, a function of name and module, or a list of these", _flaw)


class Chosen:
    """The part of a model that may be folded.

    A name stands for all that lies in it. ``*`` and ``?`` in a pattern stand for any characters.
    """

    def __init__(self, where: Where, places: Mapping[str, Any]) -> None:
        """Look up what was asked for.

        Args:
            where: What was asked for.
            places: The modules of the model, or the operations of the graph, by name.

        Raises:
            InputError: A name or pattern fits nothing, or nothing is chosen at all.

        """
        asked = where if isinstance(where, list | tuple | set | frozenset) else (where,)
        self._roots: set[str] = set()
        self._left: frozenset[str] = frozenset()
        for each in asked:
            self._roots |= _fitting(each, places)
        if not self._roots:
            raise InputError("nothing in the model fits what was asked for; choose a part of it")

    @classmethod
    def but(cls, left: Collection[str]) -> Chosen:
        """Everything but these places."""
        chosen = cls("*", {"": None})
        chosen._left = frozenset(left)
        return chosen

    def __contains__(self, place: str) -> bool:
        """Whether a place, or something that it lies in, was chosen."""
        if place in self._left:
            return False
        ends = (i for i, letter in enumerate(place) if letter in "./")
        return "" in self._roots or any(
            place[:end] in self._roots for end in (*ends, len(place)) if end
        )


def _fitting(where: Any, places: Mapping[str, Any]) -> set[str]:
    if isinstance(where, str):
        found = {name for name in places if name == where or fnmatchcase(name, where)}
        found |= {where for name in places if name.startswith((f"{where}.", f"{where}/"))}
        if not found:
            near = difflib.get_close_matches(where, [name for name in places if name], 3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise InputError(f"nothing in the model is called {where!r} or fits it{hint}")
        return found
    if isinstance(where, type):
        return {name for name, place in places.items() if isinstance(place, where)}
    return {name for name, place in places.items() if where(name, place)}


EVERYTHING = Chosen.but(())
"""The whole of any model."""
