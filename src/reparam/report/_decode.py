"""From parsed JSON to frozen records, with the place of every misfit in the message."""

from __future__ import annotations

import math
import types
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from reparam.errors import InputError

__all__ = ["decode"]

_Record = TypeVar("_Record")

_LARGEST = 1e18
"""No number of a result is larger, and charts are drawn of nothing larger."""


def decode(record: type[_Record], value: object, where: str) -> _Record:
    """Build `record`, a frozen dataclass, from the JSON object `value`.

    Keys that the record does not know are ignored, so that a page can be drawn from results of a
    later version.

    Args:
        record: the dataclass to build.
        value: what `json.loads` returned.
        where: the name of the place, for messages; the keys on the way down are appended.

    Raises:
        InputError: a key is missing, or a value has another type than the record declares.
    """
    return cast("_Record", _decode(record, value, where))


def _decode(wanted: Any, value: object, where: str) -> Any:
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return _optional(wanted, value, where)
    if origin is tuple:
        return _sequence(get_args(wanted)[0], value, where)
    if origin is dict:
        return _mapping(get_args(wanted)[1], value, where)
    if is_dataclass(wanted):
        return _record(wanted, value, where)
    return _scalar(wanted, value, where)


def _optional(wanted: Any, value: object, where: str) -> Any:
    if value is None:
        return None
    (inner,) = (choice for choice in get_args(wanted) if choice is not types.NoneType)
    return _decode(inner, value, where)


def _sequence(item: Any, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _misfit(where, value, "a list")
    return tuple(_decode(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))


def _mapping(item: Any, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _misfit(where, value, "an object")
    return {str(key): _decode(item, entry, f"{where}.{key}") for key, entry in value.items()}


def _record(wanted: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _misfit(where, value, "an object")
    hints = get_type_hints(wanted)
    given = {}
    for field in fields(wanted):
        if field.name in value:
            given[field.name] = _decode(
                hints[field.name], value[field.name], f"{where}.{field.name}"
            )
        elif _is_required(field):
            raise InputError(
                f"{where}: found the keys {', '.join(sorted(map(str, value))) or '(none)'}; "
                f"needed {field.name!r} too; was this file written by another tool?"
            )
    return wanted(**given)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _scalar(wanted: Any, value: object, where: str) -> Any:
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not (math.isfinite(value) and abs(value) <= _LARGEST):
            raise _misfit(where, value, "a finite number of a size that can be drawn")
        return float(value)
    # bool is a subclass of int, and `true` is no count.
    if type(value) is not wanted:
        raise _misfit(where, value, {str: "a text", int: "a whole number"}.get(wanted, "a number"))
    if wanted is int and not 0 <= cast("int", value) <= _LARGEST:
        raise _misfit(where, value, "a count from 0 on")
    return value


def _misfit(where: str, value: object, needed: str) -> InputError:
    try:
        shown = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        shown = "a number of thousands of digits"
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return InputError(f"{where}: found {shown} ({type(value).__name__}), needed {needed}")
