"""Options in groups: each option is named once, as a field of a record that commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

__all__ = ["flat"]


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """Let each field of an argument that is a record be an option of its own.

    The command is called with the records; typer sees their fields, with the defaults and the
    ``typer.Option`` of their annotations.
    """
    hints = get_type_hints(command, include_extras=True)
    taken = inspect.signature(command).parameters.values()
    groups = {p.name: hints[p.name] for p in taken if is_dataclass(hints[p.name])}
    parameters = [
        each
        for p in taken
        for each in (
            _options(groups[p.name]) if p.name in groups else [p.replace(annotation=hints[p.name])]
        )
    ]

    @wraps(command)
    def run(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        command(**values)

    # Arguments of the command line are in order; of what is named, the help tells of needs first.
    ordered = sorted(
        parameters, key=lambda p: (p.kind is p.KEYWORD_ONLY) * (1 + (p.default is not p.empty))
    )
    run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in ordered}
    return run


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY,
            default=_default(field), annotation=hints[field.name],
        )
        for field in fields(group)
    ]  # fmt: skip


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
