"""Running a caller's modules without leaving a trace in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def leaves_untouched(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function put back whatever it changed in the modules it was given."""

    @functools.wraps(function)
    def restoring(*args: P.args, **kwargs: P.kwargs) -> R:
        with untouched(_modules_in((*args, *kwargs.values()))):
            return function(*args, **kwargs)

    return restoring


@contextmanager
def untouched(models: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules be run, and have their modes, buffers, hooks and attributes be as before.

    Meanwhile they work on copies of their buffers, so that the numbers are not written to either.
    """
    modules = list(dict.fromkeys(m for model in models for m in model.modules()))
    saved = [(module, _state_of(module)) for module in modules]
    frozen = [(p, p.requires_grad) for module in modules for p in module.parameters(recurse=False)]
    copies: dict[int, Tensor] = {}
    for module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
    try:
        yield
    finally:
        for module, state in saved:
            _restore(module, state)
        for parameter, flag in frozen:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


State = dict[str, tuple[Any, dict[Any, Any] | None]]


def _state_of(module: nn.Module) -> State:
    """Attributes of a module, and the content of those that are tables (hooks, buffers, ...)."""
    return {
        name: (value, dict(value) if isinstance(value, dict) else None)
        for name, value in vars(module).items()
    }


def _restore(module: nn.Module, state: State) -> None:
    attributes = vars(module)
    for name in attributes.keys() - state.keys():
        del attributes[name]
    for name, (value, content) in state.items():
        attributes[name] = value
        if content is not None:
            value.clear()
            value.update(content)


def _modules_in(values: Iterable[object]) -> Iterator[nn.Module]:
    for value in values:
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, Mapping):
            yield from (inner for inner in value.values() if isinstance(inner, nn.Module))
