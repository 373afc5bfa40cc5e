"""Modules as they run: what wraps a model, which submodule runs, and in which mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules in eval mode for a while, each by itself."""
    modes = [(module, module.training) for module in modules]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def watch_modules(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the paths of the submodules that run in a list, innermost last; no hook on the model."""
    paths = {part: name for name, part in model.named_modules()}

    def enter(part: nn.Module, _: Any) -> None:
        path.append(paths.get(part, path[-1] if path else ""))

    def leave(*_: Any) -> None:
        path.pop()

    handles = (
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def wrapped(module: nn.Module) -> nn.Module | None:
    """The module that torch.compile, DataParallel or DistributedDataParallel wraps, if it is one.

    >>> wrapped(nn.DataParallel(nn.ReLU()))
    ReLU()

    """
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    is_compiled_later = type(module).__module__.startswith("torch._dynamo")
    return module.get_submodule("_orig_mod") if is_compiled_later else None


def innermost(model: nn.Module) -> nn.Module:
    """The module inside of all such wrappers."""
    while (inner := wrapped(model)) is not None:
        model = inner
    return model
