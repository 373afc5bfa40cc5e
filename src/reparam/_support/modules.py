"""Follow which submodule of a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

__all__ = ["watch_modules"]


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
