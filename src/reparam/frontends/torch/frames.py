"""The calls of modules in a trace, and the names of the operations in them."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from torch import fx, nn

from reparam.frontends.torch.structures import leaves


class Key(NamedTuple):
    """The static name of an operation: the same in every trace and every call that holds it.

    Attributes:
        owner: Path of the module whose forward holds the operation; for a module call its parent.
        target: What is called: a module's path, or a function, method or attribute together with
            the parameters and literals that it reads.
        number: Which of the calls of ``target`` in one call of ``owner``.
        is_module: Whether a module is called.

    """

    owner: str
    target: str
    number: int
    is_module: bool


class Call(NamedTuple):
    """One call of one module in a trace: its path and which of its calls it is."""

    path: str
    number: int


@dataclass(eq=False)
class Frame:
    """What happened in one call of a module.

    Attributes:
        call: Which call.
        module: The module.
        arguments: What it was called with, by the names of forward's parameters.
        items: The operations in its forward, and the calls of modules that were traced as well.
        result: What it returned.
        read: The parameters and buffers that its forward has read, by their names.

    """

    call: Call
    module: nn.Module
    arguments: dict[str, Any]
    items: list[fx.Node | Frame] = field(default_factory=list)
    result: Any = None
    read: dict[str, Any] = field(default_factory=dict, repr=False)

    def nodes(self) -> Iterator[fx.Node]:
        """All operations in the call, those of inner calls included, in order."""
        for item in self.items:
            if isinstance(item, Frame):
                yield from item.nodes()
            else:
                yield item

    def plain_arguments(self) -> dict[Any, Any]:
        """The numbers and words in the arguments, by the steps that lead to them."""
        plain = bool | int | float | str | None
        return {s: leaf for s, leaf in leaves(self.arguments) if isinstance(leaf, plain)}

    def all_calls(self) -> Iterator[Frame]:
        """This call and those in it, in order."""
        yield self
        for item in self.items:
            if isinstance(item, Frame):
                yield from item.all_calls()


def join(parent: str, name: str) -> str:
    """Join two module paths."""
    return f"{parent}.{name}" if parent and name else parent or name


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip(' :')}" if text else type(error).__name__


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names that forward has for them."""
    try:
        return _bound(module, args, kwargs, follow=True)
    except (TypeError, ValueError):
        return {**{f"*{k}": value for k, value in enumerate(args)}, **kwargs}


def check_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise what a call would raise that a forward does not take: its caller may catch that.

    Raises:
        TypeError: The forward has other parameters.

    """
    with contextlib.suppress(ValueError):  # it does not say which parameters it has
        _bound(module, args, kwargs, follow=False)


def _bound(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, follow: bool
) -> dict[str, Any]:
    """Arguments by the parameters of a forward: of what it was wrapped from, or of itself."""
    forward: Any = module.forward
    function = getattr(forward, "__func__", None)
    if not (type(forward) is MethodType and type(function) is FunctionType) or kwargs:
        signature = inspect.signature(forward, follow_wrapped=follow)
        return dict(signature.bind(*args, **kwargs).arguments)
    places = _places(function, follow, len(args))
    return {
        name: args[at] if isinstance(at, int) else tuple(args[k] for k in at)
        for name, at in places.items()
    }


@functools.lru_cache(maxsize=1024)
def _places(function: FunctionType, follow: bool, count: int) -> dict[str, Any]:  # noqa: FBT001
    """Which of so many positional arguments each parameter of a method gets."""
    signature = inspect.signature(MethodType(function, object()), follow_wrapped=follow)
    return dict(signature.bind(*range(count)).arguments)


def as_called(
    signature: inspect.Signature, arguments: dict[str, Any], positional: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by position and by name, as a caller would write them: without the defaults.

    A decorator of a forward may take some by name alone, and add those that are missing.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name not in arguments:
            continue
        value = arguments[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            if value:  # all those before it are given by position then
                args += [*kwargs.values(), *value]
                kwargs = {}
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs |= value
        elif parameter.kind is parameter.POSITIONAL_ONLY or len(args) < positional:
            args.append(value)
        elif value is not parameter.default:
            kwargs[name] = value
    return tuple(args), kwargs
