"""Options as fields of records: the help, the call and the words to type follow from the field.

What one command alone takes may stand among its arguments, in the same way.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import partial, wraps
from typing import Annotated, Any, get_type_hints

import typer


def option(
    told: str,
    metavar: str | None = None,
    *,
    flags: Sequence[str] = (),
    default: Any = None,
    **limits: Any,
) -> Any:
    """A field of a record, which is an option of the commands that take the record.

    Args:
        told: What the help says of it.
        metavar: What the help calls its value.
        flags: Its names, where they are not that of the field; a switch that is off by default has
            none that switches it off.
        default: Its default; ``...`` for an option that has to be given.
        **limits: More arguments of :func:`typer.Option`, such as ``min``.
    """
    about = {"flags": tuple(flags), "told": told, "metavar": metavar, "limits": limits}
    return field(default=MISSING if default is ... else default, metadata=about)


def argument(told: str, metavar: str, *, default: Any = ...) -> Any:
    """A word of the command line that has no name; see :func:`option`."""
    about = {"told": told, "metavar": metavar, "limits": {}}
    return field(default=MISSING if default is ... else default, metadata=about)


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """Let each field of an argument that is a record be an option of its own.

    The command is called with the records; typer sees their fields.
    """
    hints = get_type_hints(command, include_extras=True)
    taken = inspect.signature(command).parameters.values()
    groups = {p.name: hints[p.name] for p in taken if is_dataclass(hints[p.name])}
    parameters = [
        each
        for p in taken
        for each in (_options(groups[p.name]) if p.name in groups else [_one(p, hints[p.name])])
    ]

    @wraps(command)
    def run(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{each.name: values.pop(each.name) for each in fields(kind)})
        command(**values)

    # Arguments of the command line are in order; of what is named, the help tells of needs first.
    ordered = sorted(
        parameters, key=lambda p: (p.kind is p.KEYWORD_ONLY) * (1 + (p.default is not p.empty))
    )
    run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in ordered}
    return run


def _options(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        named = inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each)
        yield _one(named, hints[each.name])


def _one(parameter: inspect.Parameter, hint: Any) -> inspect.Parameter:
    """An argument as typer reads it: the default apart from what is told of it."""
    each = parameter.default
    if not isinstance(each, Field):
        return parameter.replace(annotation=hint)
    default = parameter.empty if each.default is MISSING else each.default
    if about := each.metadata:
        named = {"metavar": about["metavar"], "help": about["told"], **about["limits"]}
        hint = Annotated[hint, _kind(parameter.name, about.get("flags"), default)(**named)]
    return parameter.replace(default=default, annotation=hint)


def _kind(name: str, flags: Sequence[str] | None, default: Any) -> Callable[..., Any]:
    if flags is None:
        return typer.Argument
    return partial(typer.Option, *(flags or ([_flag(name, ())] if default is False else [])))


def words(options: Any) -> list[str]:
    """What of a record is not left at its default, as it has to be typed."""
    return [
        word
        for each in fields(options)
        if "flags" in each.metadata and getattr(options, each.name) != each.default
        for flag in (_flag(each.name, each.metadata["flags"]),)
        for word in typed(flag, f"--no-{flag[2:]}", getattr(options, each.name))
    ]


def _flag(name: str, flags: Sequence[str]) -> str:
    named = flags or (f"--{name.replace('_', '-')}",)
    return max((flag.partition("/")[0] for flag in named), key=len)


def typed(flag: str, off: str, value: Any) -> Iterator[str]:
    """An option and its value, or one such pair for each of several."""
    if isinstance(value, bool):
        yield flag if value else off
        return
    for each in value if isinstance(value, list | tuple) else [value]:
        yield from (flag, str(each))


def command(*words: str) -> str:
    """A command as it can be typed: words with spaces or signs of the shell are quoted."""
    return shlex.join(["reparam", *words])
