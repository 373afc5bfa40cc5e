"""Copies of a module tree that share its numbers, so that reading a model never changes it."""

from __future__ import annotations

import copy
import functools
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from reparam._support.arguments import shown
from reparam.errors import UnsupportedModelError

__all__ = [
    "TABLES",
    "Copier",
    "fill_graph_module",
    "hooked_modules",
    "named_tensors",
    "on_meta",
    "runnable_copy",
    "shared_copy",
    "tensors_of",
    "unwrap",
    "with_plain_weights",
    "without_numbers",
]

TABLES = ("_modules", "_parameters", "_buffers")
"""Where a module holds its parts."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


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
    inner = model
    while True:
        if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner.get_submodule("_orig_mod")  # torch.compile's wrapper
        else:
            return inner if inner is model else unwrap(inner, name)


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
        for name in _HOOKS:
            table = vars(module)[name]
            table.update({number: _Needed(hook) for number, hook in table.items()})
    return twin


class _Needed:
    """A hook that a forward does not run without, as where it fetches what the hook collects."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._hook(*args, **kwargs)


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


class Copier:
    """Copy a module tree fast: modules and containers anew, tensors as a function says.

    ``copy.deepcopy`` walks every attribute of every module and costs more than a fold.
    """

    def __init__(
        self,
        tensor: Callable[[Tensor], Tensor],
        *,
        keep_hooks: bool = False,
        memo: dict[int, Any] | None = None,
    ) -> None:
        """Prepare to copy.

        Args:
            tensor: Copies a tensor.
            keep_hooks: Whether hooks are copied as well.
            memo: Objects, by ``id``, and what takes their place.

        """
        self._copy_tensor = tensor
        self._keep_hooks = keep_hooks
        self._memo = {} if memo is None else memo
        self._kept: list[Any] = []

    def copy(self, model: nn.Module) -> nn.Module:
        """Copy a model.

        Raises:
            UnsupportedModelError: It does not let itself be copied.

        """
        try:
            twin: nn.Module = self.value(model)
        except (TypeError, RuntimeError, AttributeError) as error:
            msg = (
                f"{type(model).__name__} cannot be copied, and a copy is read so that the model "
                f"itself is never touched: {error}"
            )
            raise UnsupportedModelError(msg) from error
        return twin

    def value(self, value: Any) -> Any:
        """Copy any value."""
        if type(value) in _ATOMS:
            return value
        known = self._memo.get(id(value))
        if known is not None:
            return known
        kind: Any = type(value)
        return self._way_to_copy(kind)(self, value)

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def _way_to_copy(cls, kind: Any) -> Callable[[Copier, Any], Any]:
        """How values of a class are copied, which is asked of every attribute of every module."""
        own = hasattr(kind, "__deepcopy__") and not issubclass(kind, fx.GraphModule)
        ways: list[tuple[bool, Callable[[Copier, Any], Any]]] = [
            (issubclass(kind, fx.Graph), cls._graph),
            (issubclass(kind, fx.GraphModule), cls._graph_module),
            (issubclass(kind, nn.Module), cls._by_itself if own else cls._module),
            (issubclass(kind, Tensor), cls._tensor),
            (kind in {dict, OrderedDict}, cls._table),
            (kind in {list, set, tuple}, cls._sequence),
        ]
        return next((way for fits, way in ways if fits), cls._other)

    def _graph(self, graph: fx.Graph) -> Any:
        if not self._keep_hooks:
            return graph  # read, never run or edited
        return self._remember(graph, self._deep(graph))

    def _tensor(self, tensor: Tensor) -> Any:
        return self._remember(tensor, self._copy_tensor(tensor))

    def _table(self, table: dict[Any, Any]) -> Any:
        made = {k: v if type(v) in _ATOMS else self.value(v) for k, v in table.items()}
        return self._remember(table, made if type(table) is dict else OrderedDict(made))

    def _sequence(self, parts: Any) -> Any:
        made = type(parts)([v if type(v) in _ATOMS else self.value(v) for v in parts])
        same = type(parts) is tuple and all(map(operator.is_, made, parts))
        return self._remember(parts, parts if same else made)

    def _other(self, value: Any) -> Any:
        return self._remember(value, self._deep(value))

    def _deep(self, value: Any) -> Any:
        try:
            return copy.deepcopy(value, self._memo)
        except (TypeError, RuntimeError, AttributeError):
            return value  # a view of a dict, a lock, a handle: nothing that a model computes with

    def _by_itself(self, module: nn.Module) -> nn.Module:
        """Let a module copy itself, with copies of ours of what it holds."""
        for part in (*module.children(), *tensors_of(module)):
            self.value(part)
        twin: nn.Module = copy.deepcopy(module, self._memo)
        return twin

    def _graph_module(self, module: fx.GraphModule) -> nn.Module:
        """Make a graph module to keep, with a class of its own, which holds its code."""
        if not self._keep_hooks:
            return self._module(module)
        twin = self._remember(module, fx.GraphModule.__new__(fx.GraphModule))
        tables = {name: self.value(vars(module)[name]) for name in TABLES}
        return fill_graph_module(twin, tables, copy.deepcopy(module.graph))

    def _module(self, module: nn.Module) -> nn.Module:
        # Not by the class's own __new__: that of a GraphModule makes another class.
        twin: nn.Module = self._remember(module, object.__new__(type(module)))
        state = vars(twin)
        state.update(vars(module))
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _ATOMS:
                continue
            if name in _OWN and not value:
                state[name] = kind()
            elif name in _HOOKS and not self._keep_hooks:
                kept = {n: hook for n, hook in value.items() if isinstance(hook, _Needed)}
                state[name] = kind(kept)
            else:
                state[name] = self.value(value)
        return twin

    def _remember(self, value: Any, made: Any) -> Any:
        self._memo[id(value)] = made
        self._kept.append(value)  # so that no other object gets its id meanwhile
        return made


def fill_graph_module(
    module: fx.GraphModule, tables: dict[str, dict[str, Any]], graph: fx.Graph
) -> fx.GraphModule:
    """Give an empty graph module its graph, and what of the tables that reads."""
    holder = nn.Module()
    vars(holder).update(tables, training=False)
    fx.GraphModule.__init__(module, holder, graph)
    return module


_OWN = frozenset(name for name, value in vars(nn.Module()).items() if type(value) is not bool)
"""What every module has of its own, most of it empty."""

_ATOMS = frozenset({
    int, float, complex, str, bytes, bool, type, type(None), torch.dtype, torch.device, torch.Size,
    FunctionType, BuiltinFunctionType, ModuleType,
})  # fmt: skip
