"""Copies of a module tree that share its numbers, so that reading a model never changes it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import UnsupportedModelError

__all__ = ["hooked_modules", "on_meta", "runnable_copy", "shared_copy", "tensors_of", "unwrap"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def unwrap(model: nn.Module) -> nn.Module:
    """Take the model out of torch.compile, DataParallel and DistributedDataParallel wrappers.

    Raises:
        UnsupportedModelError: The model is none that can be read: a ScriptModule, an exported
            program, or no module at all.

    """
    if isinstance(model, torch.jit.ScriptModule):
        msg = (
            f"got a ScriptModule ({type(model).__name__}), whose Python code is gone; "
            f"needed the nn.Module it was scripted or traced from: fuse that, then script it again"
        )
        raise UnsupportedModelError(msg)
    if not isinstance(model, nn.Module):
        hint = ""
        if isinstance(model, torch.export.ExportedProgram):
            hint = "; fuse the nn.Module it was exported from, or pass its .module()"
        msg = f"got {type(model).__name__}, needed a torch.nn.Module{hint}"
        raise UnsupportedModelError(msg)
    inner = model
    while True:
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner.get_submodule("_orig_mod")  # torch.compile's wrapper
        else:
            return inner if inner is model else unwrap(inner)


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers, shared ones once."""
    seen: set[int] = set()
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy the module tree, sharing parameters and buffers, without forward hooks.

    Tracing may leave traces in a module's attributes; they stay in this copy.
    """
    return _copy(model, {id(tensor): tensor for tensor in tensors_of(model)})


def runnable_copy(model: nn.Module) -> nn.Module:
    """A copy to run: parameters shared, buffers its own, since running may write them."""
    twin = shared_copy(model)
    for module in twin.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.clone()
    return twin


def on_meta(model: nn.Module) -> nn.Module:
    """Copy the module tree with tensors that have shapes but no numbers, to run it for free."""
    memo: dict[int, Any] = {}
    for tensor in tensors_of(model):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        )
    twin = _copy(model, memo)
    for module in twin.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[name] = value.to("meta")
    return twin


def hooked_modules(model: nn.Module) -> dict[str, str]:
    """Names of modules with forward hooks, each with the kind of hook it has.

    Hooks that only compute a parametrized weight (weight norm, spectral norm) count as well: they
    run Python that a fold would cut off.
    """
    kinds = {"_forward_hooks": "a forward hook", "_forward_pre_hooks": "a forward pre-hook"}
    return {
        name: kind
        for name, module in model.named_modules()
        for attribute, kind in kinds.items()
        if vars(module).get(attribute)
    }


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        twin = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        msg = (
            f"{type(model).__name__} cannot be copied, and a copy is read so that the model itself "
            f"is never touched: {error}"
        )
        raise UnsupportedModelError(msg) from error
    for module in twin.modules():
        for attribute in _HOOKS:
            if vars(module).get(attribute):
                vars(module)[attribute] = type(vars(module)[attribute])()
    return twin
