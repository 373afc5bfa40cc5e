"""Which part of a model may be folded: the argument ``where``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from reparam._support.arguments import Kind, shown
from reparam.errors import InputError

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

    A name stands for all that lies in it, and ``*`` and ``?`` in a pattern for any characters. A
    class or a function that fits a module takes all that lies in it as well; a function that fits
    the model as a whole says what to leave by not fitting that.
    """

    def __init__(self, where: Where, places: Mapping[str, Any]) -> None:
        """Look up what was asked for.

        Args:
            where: What was asked for.
            places: The modules of the model, or the operations of the graph, by name; by the first
                one where they have several.

        Raises:
            InputError: A name or pattern fits nothing, or nothing is chosen at all.

        """
        asked = where if isinstance(where, list | tuple | set | frozenset) else (where,)
        self._parts = [_part(each, places) for each in asked]
        if not any(part.roots for part in self._parts):
            raise InputError("nothing in the model fits what was asked for; choose a part of it")

    @classmethod
    def but(cls, left: Collection[str]) -> Chosen:
        """Everything but these places and what lies in them."""
        chosen = cls("*", {"": None})
        chosen._parts = [_Part({""}, set(left))]
        return chosen

    def __contains__(self, place: str) -> bool:
        """Whether a place, or something that it lies in, was chosen."""
        ends = [i for i, letter in enumerate(place) if letter in "./" and i]
        around = {"", place, *(place[:end] for end in ends)}
        return any(part.roots & around and not part.left & around for part in self._parts)


class _Part(NamedTuple):
    """What lies in one of the roots and in nothing that is left."""

    roots: set[str]
    left: set[str]


def _part(where: Any, places: Mapping[str, Any]) -> _Part:
    if isinstance(where, str | type):
        roots = _fitting(where, places)
        same = {id(places[name]) for name in roots if name in places}
        return _Part(roots | {name for name, place in places.items() if id(place) in same}, set())
    if isinstance(where, nn.Module):
        held = {name for name, place in places.items() if place is where}
        if not held:
            what = f"a {type(where).__name__}"
            raise InputError(f"where is {what} that the model does not hold; give one of its own")
        return _Part(held, set())
    once = {id(place): (name, place) for name, place in reversed(list(places.items()))}.values()
    fitting = {name for name, place in once if _fits(where, name, place)}
    return _Part(fitting, places.keys() - fitting if "" in fitting else set())


def _fits(where: Callable[[str, Any], bool], name: str, place: Any) -> bool:
    try:
        return bool(where(name, place))
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(
            f"the function where raised {what} (called with {name!r} and {shown(place)}); "
            f"it is called with the name of a module, or operation, and that itself"
        ) from error


def _fitting(where: str | type, places: Mapping[str, Any]) -> set[str]:
    if isinstance(where, str):
        found = {name for name in places if name == where or fnmatchcase(name, where)}
        found |= {where for name in places if name.startswith((f"{where}.", f"{where}/"))}
        if not found:
            near = difflib.get_close_matches(where, [name for name in places if name], 3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise InputError(f"nothing in the model is called {where!r} or fits it{hint}")
        return found
    return {name for name, place in places.items() if isinstance(place, where)}


EVERYTHING = Chosen.but(())
"""The whole of any model."""
