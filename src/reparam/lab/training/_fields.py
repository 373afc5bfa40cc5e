"""Frozen dataclasses from nested plain values, with errors for the person who wrote the values."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from reparam.errors import InputError

__all__ = ["build"]


def build(cls: type[Any], values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Return an instance of a dataclass.

    Args:
        cls: A dataclass whose fields are plain, literal, tuple or dataclass typed.
        values: Field values by name; what is left out keeps its default.
        where: Where the values come from, for errors.
        prefix: Dotted path of `values` within the whole, for errors.

    Raises:
        InputError: A name is unknown, or a value does not fit its field.
    """
    hints = get_type_hints(cls)
    known = [entry.name for entry in fields(cls)]
    for name in values:
        if name not in known:
            raise InputError(
                f"{where}: unknown key {prefix + name!r}{_suggestion(name, known, prefix)}"
            )
    converted = {
        name: _convert(value, hints[name], where, prefix + name) for name, value in values.items()
    }
    try:
        return cls(**converted)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _suggestion(name: str, known: Sequence[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {prefix + close[0]!r}?"
    return f"; known here: {', '.join(prefix + entry for entry in known)}"


def _convert(value: Any, hint: Any, where: str, path: str) -> Any:
    origin = get_origin(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise _mismatch(value, f"a table [{path}]", where, path)
        return build(hint, value, where, path + ".")
    if origin is Literal:
        return _choose(value, get_args(hint), where, path)
    if origin is tuple:
        return _sequence(value, get_args(hint), where, path)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(value, get_args(hint)[0], where, path)
    return _plain(value, hint, where, path)


def _plain(value: Any, hint: Any, where: str, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _mismatch(value, f"of type {hint.__name__}", where, path)
    return value


def _choose(value: Any, choices: Sequence[Any], where: str, path: str) -> Any:
    if value not in choices:
        names = [str(choice) for choice in choices]
        close = difflib.get_close_matches(str(value), names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise _mismatch(value, f"one of {', '.join(map(repr, choices))}{hint}", where, path)
    return value


def _sequence(value: Any, arguments: Sequence[Any], where: str, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _mismatch(value, "a list", where, path)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise _mismatch(value, f"a list of {len(arguments)}", where, path)
    return tuple(
        _convert(entry, hint, where, f"{path}[{index}]")
        for index, (entry, hint) in enumerate(zip(value, arguments, strict=True))
    )


def _mismatch(value: Any, needed: str, where: str, path: str) -> InputError:
    return InputError(f"{where}: {path} is {value!r}; it must be {needed}")
