"""Copy a module tree: nothing in the copy, code that holds modules included, is the original's."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import operator
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.errors import UnsupportedModelError

TABLES = ("_modules", "_parameters", "_buffers")
"""Where a module holds its parts."""

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Where a module holds its hooks."""


class NeededHook:
    """A hook that a forward does not run without, as where it fetches what the hook collects."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        """Take a hook to keep."""
        self._hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        return self._hook(*args, **kwargs)


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
        except Exception as error:
            msg = (
                f"{type(model).__name__} cannot be copied, and the model itself is never touched: "
                f"{error}"
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
        own = hasattr(kind, "__deepcopy__") or kind.__reduce__ is not object.__reduce__
        ways: list[tuple[bool, Callable[[Copier, Any], Any]]] = [
            (issubclass(kind, fx.Graph), cls._graph),
            (issubclass(kind, fx.GraphModule), cls._graph_module),
            (issubclass(kind, nn.Module), cls._by_itself if own else cls._module),
            (issubclass(kind, Tensor), cls._tensor),
            (kind in {dict, OrderedDict, defaultdict}, cls._table),
            (kind in {list, set, tuple}, cls._sequence),
            (kind is FunctionType, cls._function),
            (kind is functools.partial, cls._partial),
            (kind is SimpleNamespace or _is_plain(kind), cls._object),
            (kind is weakref.ref, cls._reference),
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
        if isinstance(table, defaultdict):
            return self._remember(table, defaultdict(self.value(table.default_factory), made))
        return self._remember(table, made if type(table) is dict else OrderedDict(made))

    def _sequence(self, parts: Any) -> Any:
        if type(parts) is tuple and _ATOMS.issuperset(map(type, parts)):
            return parts
        made = type(parts)([v if type(v) in _ATOMS else self.value(v) for v in parts])
        same = type(parts) is tuple and all(map(operator.is_, made, parts))
        return self._remember(parts, parts if same else made)

    def _function(self, function: FunctionType) -> Any:
        """Copy a function that holds modules, as one written in a constructor may.

        One that ``torch.compile`` made of another is that one again.
        """
        plain = getattr(function, "_torchdynamo_orig_callable", None)
        if plain is not None:
            return self._remember(function, self.value(plain))
        if not _holds_modules(function):
            return function
        cells = function.__closure__ or ()
        twin = self._remember(function, FunctionType(
            function.__code__, function.__globals__, function.__name__, None,
            tuple(CellType() for _ in cells),
        ))  # fmt: skip
        functools.update_wrapper(twin, function).__dict__.pop("__wrapped__", None)
        vars(twin).update(self.value(vars(function)))
        twin.__defaults__ = self.value(function.__defaults__)
        twin.__kwdefaults__ = self.value(function.__kwdefaults__)
        for old, new in zip(cells, twin.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                new.cell_contents = self.value(old.cell_contents)
        return twin

    def _partial(self, call: functools.partial[Any]) -> Any:
        named = {name: self.value(value) for name, value in call.keywords.items()}
        made = functools.partial(self.value(call.func), *map(self.value, call.args), **named)
        return self._remember(call, made)

    def _object(self, value: Any) -> Any:
        """Copy an object that is its attributes, functions that hold modules among them."""
        kind: Any = type(value)
        twin = self._remember(value, kind.__new__(kind))
        vars(twin).update({name: self.value(part) for name, part in vars(value).items()})
        return twin

    def _reference(self, reference: weakref.ref[Any]) -> Any:
        target = reference()
        known = None if target is None else self._memo.get(id(target))
        return reference if known is None else self._remember(reference, weakref.ref(known))

    def _other(self, value: Any) -> Any:
        return self._remember(value, self._deep(value))

    def _deep(self, value: Any) -> Any:
        try:
            return copy.deepcopy(value, self._memo)
        except Exception:  # noqa: BLE001 (its class says what it likes)
            return value  # a view of a dict, a lock, a compiled function: no numbers of the model

    def _by_itself(self, module: nn.Module) -> nn.Module:
        """Let a module copy itself, with copies of ours of what it holds."""
        for name in TABLES:
            self.value(vars(module)[name])
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
        held, state = vars(module), vars(twin)
        state.update(held)
        for name, value in held.items():
            kind = type(value)
            if kind in _ATOMS:
                continue
            if name == "_compiled_call_impl":
                state[name] = None  # compiled code of the original; PyTorch drops it in copies, too
            elif name in _OWN and not value:
                state[name] = kind()
            elif name in TABLES and kind is dict:
                state[name] = {
                    n: None if part is None else self.value(part) for n, part in value.items()
                }
            elif name in HOOKS and not self._keep_hooks:
                kept = {n: hook for n, hook in value.items() if isinstance(hook, NeededHook)}
                state[name] = kind(kept)
            else:
                state[name] = self.value(value)
        return twin

    def _remember(self, value: Any, made: Any) -> Any:
        self._memo[id(value)] = made
        self._kept.append(value)  # so that no other object gets its id meanwhile
        return made


def own_copy(model: nn.Module) -> nn.Module:
    """Copy a model, with its hooks and with numbers of its own.

    Raises:
        UnsupportedModelError: It does not let itself be copied.

    """
    return Copier(own_tensor, keep_hooks=True).copy(model)


def own_tensor(tensor: Tensor) -> Tensor:
    """Copy a tensor with its memory format."""
    twin = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, tensor.requires_grad)
    return twin.requires_grad_(tensor.requires_grad)


def fill_graph_module(
    module: fx.GraphModule, tables: dict[str, dict[str, Any]], graph: fx.Graph
) -> fx.GraphModule:
    """Give an empty graph module its graph, and what of the tables that reads."""
    holder = nn.Module()
    vars(holder).update(tables, training=False)
    fx.GraphModule.__init__(module, holder, graph)
    return module


def _is_plain(kind: Any) -> bool:
    """Whether objects of a class are copied by their attributes alone, as Python would do it."""
    asked = ("__deepcopy__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
    same = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
    return (
        bool(getattr(kind, "__dictoffset__", 0))
        and not any(hasattr(kind, name) for name in asked)
        and all(getattr(kind, name, None) == getattr(object, name, None) for name in same)
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined]  # noqa: SLF001 (what copy asks)
    )


def _holds_modules(value: object, seen: frozenset[int] = frozenset()) -> bool:
    """Whether a function, or what a container holds, has a module or tensor in it."""
    if isinstance(value, nn.Module | Tensor):
        return True
    if id(value) in seen:
        return False
    held: Iterable[object] = ()
    if isinstance(value, MethodType):
        held = (value.__self__,)
    elif isinstance(value, functools.partial):
        held = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, FunctionType):
        held = (*_contents(value), *(value.__defaults__ or ()), value.__kwdefaults__)
    elif isinstance(value, weakref.ref):
        held = (value(),)
    elif isinstance(value, dict):
        held = value.values()
    elif isinstance(value, list | tuple | set):
        held = value
    return any(_holds_modules(part, seen | {id(value)}) for part in held)


def _contents(function: FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield cell.cell_contents


_OWN = frozenset(name for name, value in vars(nn.Module()).items() if type(value) is not bool)
"""What every module has of its own, most of it empty."""

_ATOMS = frozenset({
    int, float, complex, str, bytes, bool, type, type(None), torch.dtype, torch.device, torch.Size,
    BuiltinFunctionType, ModuleType,
})  # fmt: skip
