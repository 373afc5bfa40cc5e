"""Note the operators that reach torch's dispatcher, to compare a trace with eager execution."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from reparam.frontends.torch.builtin import is_compiled
from reparam.frontends.torch.effects import FACTORIES


class Recorder(TorchDispatchMode):
    """Note every operator with the shapes it returns and its plain arguments.

    Attributes:
        on: Whether operators are noted.
        operators: What was noted.
        written: Storages of the tensors that operators have written to.

    """

    def __init__(self, *, on: bool = True) -> None:
        """Make an empty record."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.on = on
        self.operators: list[tuple[str, Any, Any]] = []
        self.written: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not to be wrapped for torch.compile, which would take longer than what is recorded."""
        return False

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Note nothing for a while."""
        on, self.on = self.on, False
        try:
            yield
        finally:
            self.on = on

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and note it."""
        key = _key_of(func, args, kwargs)
        known = _KNOWN.get(key) if key is not None else None
        if known is None:
            result, known = _run(func, args, kwargs)
            if key is not None:
                _remember(key, result, known, args)
        else:
            result = args[0] if known.kind is _Itself else known.made()
        if self.on:
            self.operators.append(known.note)
            if _is_mutable(func) and args and isinstance(args[0], Tensor):
                self.written.add(_storage(args[0]))
        return result


@dataclass(frozen=True, slots=True)
class _Known:
    """What an operator does on tensors without numbers, which depends on their shapes alone.

    Attributes:
        note: What is noted of it.
        parts: Shape, strides, type and device of what it returns.
        kind: What holds these parts, or None for a single one.

    """

    note: tuple[str, Any, Any]
    parts: tuple[tuple[Any, ...], ...] = ()
    kind: type | None = None

    def made(self) -> Any:
        """Make once more what the operator returns."""
        made = [torch.empty_strided(*part[:2], dtype=part[2], device="meta") for part in self.parts]
        return made[0] if self.kind is None else self.kind(made)


class _Itself:
    """Stands for the kind of result that is the first argument, which an operator has changed."""


_KNOWN: dict[Any, _Known] = {}
"""Nets repeat their blocks, and a trace repeats its module: each operator runs once a shape."""
_MOST_KNOWN = 20_000


def _run(func: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, _Known]:
    result = _batch_norm_shapes(func, args)
    if result is None:
        result = func(*args, **(kwargs or {}))
    shapes = tuple(tuple(t.shape) for t in _flat(result) if isinstance(t, Tensor))
    plain = _flat([*args, *(kwargs or {}).values()])
    literals = tuple(v for v in plain if isinstance(v, int | float | bool))
    return result, _Known((str(func), shapes, literals))


def _flat(value: Any) -> Iterator[Any]:
    """What the lists and tuples hold that operators take and return."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _remember(key: Any, result: Any, known: _Known, args: tuple[Any, ...]) -> None:
    if args and result is args[0]:
        if _part_of_key(result) == key[1]:
            _KNOWN[key] = replace(known, kind=_Itself)
        return
    kind = type(result) if type(result) in {tuple, list} else None
    parts = [result] if kind is None else result
    if not all(type(t) is Tensor and _is_plain(t) for t in parts):
        return
    if len(_KNOWN) >= _MOST_KNOWN:
        _KNOWN.clear()
    described = tuple((t.shape, t.stride(), t.dtype) for t in parts)
    _KNOWN[key] = replace(known, parts=described, kind=kind)


def _key_of(func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    """What the result of an operator depends on, or None where more than that is changed."""
    if not _is_known_by_shapes(func):
        return None
    parts = [id(func), *map(_part_of_key, args)]  # an operator stays; its hash takes long
    for name, value in (kwargs or {}).items():
        parts += (name, _part_of_key(value))
    return None if _OTHER in parts else tuple(parts)


def _part_of_key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype) if _is_plain(value) else _OTHER
    if isinstance(value, list | tuple):
        parts = tuple(map(_part_of_key, value))
        return _OTHER if _OTHER in parts else parts
    # 1, 1.0 and True are equal, and make other types of results
    return (type(value), value) if type(value) in _LITERALS else _OTHER


_OTHER = "other"
_LITERALS = frozenset({
    int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format,
})  # fmt: skip


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_meta and tensor.layout is torch.strided


@functools.cache
def _is_known_by_shapes(func: Any) -> bool:
    """Whether an operator returns new tensors and changes none, or one that it changes."""
    schema = func._schema  # noqa: SLF001 (the only way to see what an operator does)
    if schema.is_mutable:
        first, *others = schema.arguments
        alone = first.is_write and not any(argument.is_write for argument in others)
        return alone and schema.name != "aten::set_"  # which changes what a tensor is made of
    return all(r.alias_info is None for r in schema.returns)


@functools.cache
def _is_mutable(func: Any) -> bool:
    return bool(func._schema.is_mutable)  # noqa: SLF001 (the only way to see what an operator does)


class Factories(TorchFunctionMode):
    """Hand over the calls that make tensors of plain numbers, which torch.fx runs and forgets."""

    def __init__(self, record: Callable[..., Any]) -> None:
        """Take what records a call."""
        super().__init__()
        self._record = record

    def __enter__(self) -> Factories:  # noqa: PYI034 (as in torch)
        """Take the calls with traced numbers, too, which torch would ask for plain ones."""
        for name, function in _FACTORIES.items():
            setattr(torch, name, self._for_traced(function))
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: object) -> None:
        """Hand the functions back."""
        for name, function in _FACTORIES.items():
            setattr(torch, name, function)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _for_traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def taken(*args: Any, **kwargs: Any) -> Any:
            flat = [
                part
                for value in (*args, *kwargs.values())
                for part in (value if type(value) in {list, tuple} else (value,))
            ]
            if any(issubclass(type(part), fx.Proxy) for part in flat):
                return self._record("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return taken

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record a call, or make it."""
        if func in FACTORIES:
            return self._record("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


_FACTORIES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in filter(callable, FACTORIES)
    if getattr(torch, function.__name__, None) is function
}
"""Those that are called by their names in ``torch``."""


def written_by(
    recorder: Recorder, before: Mapping[str, int], after: Mapping[str, Tensor]
) -> frozenset[str]:
    """The tensors that a run has written to, or put other numbers into."""
    return frozenset(
        name
        for name, storage in before.items()
        if storage in recorder.written or name not in after or _storage(after[name]) != storage
    )


class OutsideReads(TorchDispatchMode):
    """Note which parameters and buffers are read outside of the modules that hold them.

    What the code of a module does with the numbers of one inside is not seen in the graph of that
    one. Sharing modules and tensors is no matter: each may be held in several places.
    """

    def __init__(self, module: nn.Module) -> None:
        """Watch the calls of what lies in a module; see :meth:`stop`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._holders: dict[int, set[nn.Module]] = defaultdict(set)
        self._names: dict[int, str] = {}
        self._running: list[nn.Module] = []
        self._read: set[int] = set()
        for path, inner in module.named_modules(remove_duplicate=False):
            around = [module.get_submodule(path[:k]) for k, sign in enumerate(path) if sign == "."]
            held = (*inner.named_parameters(recurse=False), *inner.named_buffers(recurse=False))
            for name, tensor in held if path else ():
                self._holders[_storage(tensor)].update((inner, *around))
                self._names.setdefault(_storage(tensor), f"{path}.{name}")
        inside = [m for path, m in module.named_modules() if path and not is_compiled(m)]
        self._handles = [inner.register_forward_pre_hook(self._enter) for inner in inside]
        self._handles += [
            inner.register_forward_hook(self._leave, always_call=True) for inner in inside
        ]

    def found(self) -> frozenset[str]:
        """The names of what was read; nothing is watched any more."""
        for handle in self._handles:
            handle.remove()
        return frozenset(self._names[storage] for storage in self._read)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and note whose numbers it reads."""
        for tensor in filter(_is_tensor, tree_flatten((args, kwargs))[0]):
            storage = _storage(tensor)
            holders = self._holders.get(storage)
            if holders is not None and holders.isdisjoint(self._running):
                self._read.add(storage)
        return func(*args, **(kwargs or {}))

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._running.append(module)

    def _leave(self, _module: nn.Module, _args: Any, _result: Any) -> None:
        self._running.pop()


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def storages(named: Mapping[str, Tensor]) -> dict[str, int]:
    """The memory of each tensor."""
    return {name: _storage(tensor) for name, tensor in named.items()}


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 (an address tells nothing on meta)


def _batch_norm_shapes(func: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
    """Shapes of a BN in eval mode without numbers; torch derives them by a slow decomposition."""
    if "batch_norm" not in str(func) or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    if any(value is True for value in args):
        return None
    schema = func._schema  # noqa: SLF001 (the only way to see what an operator returns)
    if len(schema.returns) != 3:
        return None
    x = args[0]
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
