"""Which modules are PyTorch's own or compiled, so that their forward is not traced."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn


def is_builtin(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's own with its forward unchanged (not a container)."""
    kind: Any = type(module)
    return not is_compiled(module) and _is_builtin(kind, kind.forward)


@functools.lru_cache(maxsize=1024)
def _is_builtin(kind: type[nn.Module], forward: object) -> bool:
    """Whether a class is; it is asked of every call of a module, with what its forward is now."""
    if issubclass(kind, nn.Sequential) or kind.__module__.startswith("torch.nn.modules.container"):
        return False
    defined_in = getattr(forward, "__module__", None) or ""  # none for generated code
    own = kind.__module__.startswith(("torch.nn", "torch.ao.nn"))
    return own or (defined_in.startswith("torch.nn") and _overrides_nothing(kind))


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is TorchScript, which runs, but has no code to read, edit or watch."""
    return isinstance(module, torch.jit.ScriptModule)


def _overrides_nothing(kind: type[nn.Module]) -> bool:
    """Whether a subclass of a PyTorch layer leaves all methods that its forward calls alone."""
    base = next(c for c in kind.__mro__ if c.__module__.startswith("torch.nn"))
    if base is nn.Module:
        return False
    changed = {name for c in kind.__mro__[: kind.__mro__.index(base)] for name in vars(c)}
    watched = {name for name, value in vars(base).items() if inspect.isfunction(value)}
    harmless = {"__init__", "extra_repr", "reset_parameters", "_load_from_state_dict"}
    return not (changed & (watched | {"__call__", "weight", "bias"})) - harmless
