"""Frozen dataclasses from nested plain values, with the place of every misfit in the message."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from reparam.errors import InputError

_Record = TypeVar("_Record")

_LARGEST = 1e18
"""No number of a file is larger, and charts are drawn of nothing larger."""


def decode(record: type[_Record], value: object, where: str, *, strict: bool = False) -> _Record:
    """Build `record`, a frozen dataclass, from the object `value`.

    Args:
        record: The dataclass to build, of plain, literal, optional, tuple, dict and dataclass
            fields; what is of any kind stays as it is.
        value: What :func:`json.loads` or :func:`tomllib.load` returned.
        where: Where that comes from, for messages, which name the keys on the way down.
        strict: Whether a key that the record does not know is an error, as in what a person wrote;
            else it is ignored, so that files of a later version can be read.

    Raises:
        InputError: A key is missing or not known, or a value does not fit its field.
    """
    return cast("_Record", _Decoder(where, strict).of(record, value, ""))


@dataclass(frozen=True)
class _Decoder:
    where: str
    strict: bool

    def of(self, wanted: Any, value: object, path: str) -> Any:
        origin, arguments = get_origin(wanted), get_args(wanted)
        if origin in (Union, types.UnionType):
            return None if value is None else self.of(arguments[0], value, path)
        if origin is Literal:
            return self._one_of(arguments, value, path)
        if origin is tuple:
            return self._sequence(arguments, value, path)
        if origin is dict:
            return self._mapping(arguments[1], value, path)
        if is_dataclass(wanted):
            return self._record(wanted, value, path)
        return self._scalar(wanted, value, path)

    def _record(self, wanted: Any, value: object, path: str) -> Any:
        if not isinstance(value, Mapping):
            raise self._misfit(value, f"a table [{path}]", path)
        known = {field.name: field for field in fields(wanted)}
        for name in value if self.strict else ():
            if name not in known:
                raise InputError(
                    f"{self.where}: unknown key {_join(path, name)!r}"
                    f"{_suggestion(name, list(known), path)}"
                )
        hints = get_type_hints(wanted)
        for name, field in known.items():
            if name not in value and _is_required(field):
                found = ", ".join(sorted(map(str, value))) or "(none)"
                raise InputError(
                    f"{self._place(path)}: found the keys {found}; needed {name!r} too; was this "
                    "file written by another tool?"
                )
        given = {
            name: self.of(hints[name], value[name], _join(path, name))
            for name in known
            if name in value
        }
        try:
            return wanted(**given)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error

    def _sequence(self, items: Sequence[Any], value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self._misfit(value, "a list", path)
        if items[1:] == (Ellipsis,):
            items = (items[0],) * len(value)
        if len(value) != len(items):
            raise self._misfit(value, f"a list of {len(items)}", path)
        return tuple(
            self.of(item, entry, f"{path}[{index}]")
            for index, (item, entry) in enumerate(zip(items, value, strict=True))
        )

    def _mapping(self, item: Any, value: object, path: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._misfit(value, "a table", path)
        return {str(k): self.of(item, entry, _join(path, k)) for k, entry in value.items()}

    def _one_of(self, choices: Sequence[Any], value: object, path: str) -> Any:
        if value in choices:
            return value
        close = difflib.get_close_matches(str(value), list(map(str, choices)), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise self._misfit(value, f"one of {', '.join(map(repr, choices))}{hint}", path)

    def _scalar(self, wanted: Any, value: object, path: str) -> Any:
        # bool is a subclass of int, and `true` is no count.
        if wanted is float and type(value) in (int, float):
            largest = math.inf if self.strict else _LARGEST
            if not (math.isfinite(cast("float", value)) and abs(cast("float", value)) <= largest):
                raise self._misfit(value, "a finite number of a size that can be drawn", path)
            return float(cast("float", value))
        if wanted is not Any and type(value) is not wanted:
            raise self._misfit(value, f"of type {wanted.__name__}", path)
        if wanted is int and not 0 <= cast("int", value) <= _LARGEST:
            raise self._misfit(value, "a whole number from 0 on", path)
        return value

    def _misfit(self, value: object, needed: str, path: str) -> InputError:
        try:
            shown = repr(value)
        except ValueError:  # Python does not write out whole numbers of thousands of digits
            shown = "a number of thousands of digits"
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return InputError(f"{self._place(path)} is {shown}; it must be {needed}")

    def _place(self, path: str) -> str:
        return f"{self.where}: {path}" if path else self.where


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _suggestion(name: object, known: Sequence[str], path: str) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"; did you mean {_join(path, close[0])!r}?"
    return f"; known here: {', '.join(_join(path, entry) for entry in known)}"
