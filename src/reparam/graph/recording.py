"""Note the operators that reach torch's dispatcher, to compare a trace with eager execution."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from reparam.graph.effects import FACTORIES

__all__ = ["Factories", "Recorder", "storages", "writes_to"]


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

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and note it."""
        result = _batch_norm_shapes(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        if self.on:
            flat, _ = tree_flatten(result)
            shapes = tuple(tuple(t.shape) for t in flat if isinstance(t, Tensor))
            plain, _ = tree_flatten((args, kwargs))
            literals = tuple(v for v in plain if isinstance(v, int | float | bool))
            self.operators.append((str(func), shapes, literals))
            if func._schema.is_mutable and args and isinstance(args[0], Tensor):  # noqa: SLF001
                self.written.add(_storage(args[0]))
        return result


class Factories(TorchFunctionMode):
    """Hand over the calls that make tensors of plain numbers, which torch.fx runs and forgets."""

    def __init__(self, record: Callable[..., Any]) -> None:
        """Take what records a call."""
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record a call, or make it."""
        if func in FACTORIES:
            return self._record("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def writes_to(recorder: Recorder, before: dict[str, int], module: nn.Module) -> str | None:
    """The parameter that a run has written to, or put other numbers into, if there is one."""
    for name, storage in before.items():
        owner, _, last = name.rpartition(".")
        tensor = getattr(module.get_submodule(owner), last, None)
        if storage in recorder.written or not isinstance(tensor, Tensor):
            return name
        if _storage(tensor) != storage:
            return name
    return None


def storages(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """The memory of each tensor."""
    return {name: _storage(tensor) for name, tensor in named}


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
