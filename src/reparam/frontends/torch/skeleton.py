"""Copies of a module tree that share its numbers, so that reading a model never changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from reparam._support.arguments import shown
from reparam._support.modules import wrapped
from reparam.errors import UnsupportedModelError
from reparam.frontends.torch.copying import HOOKS, Copier, NeededHook


def unwrap(model: nn.Module, name: str = "model") -> nn.Module:
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
            hint = "; pass its .module(), or the nn.Module that it was exported from"
        needed = f"a torch.nn.Module{hint}"
        raise UnsupportedModelError(f"{name} is {shown(model)}; needed {needed}")
    inner = wrapped(model)
    return model if inner is None else unwrap(inner, name)


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers, shared ones once."""
    seen: set[int] = set()
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, shared ones once, by their names."""
    found: dict[int, tuple[str, Tensor]] = {}
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    found.setdefault(id(tensor), (f"{path}.{name}" if path else name, tensor))
    return dict(found.values())


def shared_copy(model: nn.Module, *, needs_hooks: bool = False) -> nn.Module:
    """Copy the module tree, sharing parameters and buffers, without forward hooks.

    Tracing may leave traces in a module's attributes; they stay in this copy.

    Args:
        model: What to copy.
        needs_hooks: Whether its forward does not run without its hooks: all copies of this copy
            keep them then.

    """
    twin = Copier(lambda tensor: tensor, keep_hooks=needs_hooks).copy(model)
    for module in twin.modules() if needs_hooks else ():
        for name in HOOKS:
            table = vars(module)[name]
            table.update({number: NeededHook(hook) for number, hook in table.items()})
    return twin


def with_plain_weights(model: nn.Module, chosen: Callable[[str], bool]) -> nn.Module:
    """Compute the weights that a pre-hook would compute before every call, in a part of a model.

    The old ``torch.nn.utils.weight_norm`` and ``spectral_norm`` keep what a weight is computed from
    and set the weight itself as an attribute, in a hook. A model with such layers is copied, the
    numbers shared but for these weights, which become parameters; any other is returned as it is.
    """
    if not any(_weight_hooks(m) and chosen(name) for name, m in model.named_modules()):
        return model
    twin = Copier(lambda tensor: tensor, keep_hooks=True).copy(model)
    for module in [module for name, module in twin.named_modules() if chosen(name)]:
        for number, hook in _weight_hooks(module).items():
            weight = _computed_weight(module, hook)
            own = module.parameters(recurse=False)
            trainable = any(p.requires_grad for p in own)
            vars(module)["_forward_pre_hooks"].pop(number)
            vars(module).pop(hook.name, None)
            for suffix in _WEIGHT_PARTS:
                for table in (module._parameters, module._buffers):
                    table.pop(f"{hook.name}{suffix}", None)
            module.register_parameter(hook.name, nn.Parameter(weight, requires_grad=trainable))
    return twin


def _weight_hooks(module: nn.Module) -> dict[int, Any]:
    if isinstance(module, nn.RNNBase):
        return {}  # its weights are flattened into one, too
    hooks = vars(module).get("_forward_pre_hooks") or {}
    return {n: hook for n, hook in hooks.items() if isinstance(hook, WeightNorm | SpectralNorm)}


@torch.no_grad()
def _computed_weight(module: nn.Module, hook: Any) -> Tensor:
    """The weight that a hook computes, in float64, in the type of what it is computed from."""
    names = [f"{hook.name}{suffix}" for suffix in _WEIGHT_PARTS]
    parts = {name: getattr(module, name) for name in names if hasattr(module, name)}
    holder = nn.Module()
    for name, tensor in parts.items():
        holder.register_buffer(name, tensor.detach().to(torch.float64))
    spectral = isinstance(hook, SpectralNorm)
    weight: Tensor = hook.compute_weight(holder, *([False] if spectral else []))
    return weight.to(next(iter(parts.values())).dtype)


_WEIGHT_PARTS = ("_g", "_v", "_orig", "_u")
"""What the old hooks append to the name of a weight for the tensors they compute it from."""


def runnable_copy(model: nn.Module, *, shares_weights: bool = False) -> nn.Module:
    """A copy to run, with numbers of its own, since running may write them.

    Args:
        model: What to copy.
        shares_weights: Whether its parameters may lie in the same memory, for a model that is known
            not to write them.

    """

    def twin(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.clone()
        numbers = tensor.detach()
        return nn.Parameter(numbers if shares_weights else numbers.clone(), tensor.requires_grad)

    return Copier(twin).copy(model)


def on_meta(model: nn.Module) -> nn.Module:
    """Copy the module tree with tensors that have shapes but no numbers, to run it for free."""
    return Copier(without_numbers).copy(model)


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


def without_numbers(tensor: Tensor) -> Tensor:
    """A tensor of the same kind and shape on the ``meta`` device."""
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=False)
    return empty
