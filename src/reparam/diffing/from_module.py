"""Read a module into normal form: run it once, and see each operation as it is carried out.

A run costs what running costs, where an export is a multiple of it, and it sees what any Python
code of the module does. What it cannot see (a number taken out of a tensor, a view changed in
place) is left to the export.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from reparam.diffing.from_exported import call, changed, wide
from reparam.diffing.values import Form
from reparam.diffing.vocabulary import Vocabulary, read
from reparam.errors import UnsupportedModelError

__all__ = ["read_module", "tensors"]


def read_module(module: nn.Module, inputs: Sequence[Tensor]) -> list[Form]:
    """Return the outputs of a module in normal form, for inputs like these.

    Raises:
        UnsupportedModelError: It holds an operation that normal form does not know, or does
            something with its values that is no operation on tensors.

    """
    # Numbers other than those that the reading is checked with: what is not seen then shows.
    generator = torch.Generator().manual_seed(1)
    other = [
        torch.rand(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() else x.clone()
        for x in inputs
    ]
    recorder, outputs = _recorded(module, other)
    return read(lambda words: _replay(words, recorder, outputs, [x.shape for x in inputs]))


@dataclass(frozen=True)
class _Slot:
    """A value that depends on the inputs, by its number."""

    index: int


@dataclass(frozen=True, eq=False)
class _Call:
    """An operator, its arguments (slots, and numbers that depend on no input), its results."""

    func: Any
    where: str
    args: Any
    kwargs: Any
    results: tuple[_Slot, ...]
    single: bool


def _replay(
    words: Vocabulary, recorder: _Recorder, outputs: Sequence[_Slot | Tensor],
    shapes: Sequence[Sequence[int]],
) -> list[Form]:  # fmt: skip
    known: dict[int, Any] = {k: words.build.input(k, shape) for k, shape in enumerate(shapes)}

    def value(slot: _Slot) -> Any:
        return known[slot.index]

    for exact, run in recorder.computed:
        words.rounded(exact, run)
    for key, each in enumerate(recorder.tape):
        args, kwargs = tree_map_only(_Slot, value, (each.args, each.kwargs))
        made = words.noted(key, call(words, each.func, each.where, args, kwargs))
        results = (made,) if each.single else made
        known.update(
            (slot.index, result) for slot, result in zip(each.results, results, strict=False)
        )
    return [words.form(value(each) if isinstance(each, _Slot) else each) for each in outputs]


def _recorded(
    module: nn.Module, inputs: Sequence[Tensor]
) -> tuple[_Recorder, list[_Slot | Tensor]]:
    recorder = _Recorder(inputs)
    with torch.no_grad(), _named(module, recorder), recorder:
        result = module(*inputs)
    return recorder, [recorder.seen(leaf) for leaf in tensors(result)]


class _Recorder(TorchDispatchMode):
    """Writes down each operator on a tensor that depends on the inputs."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape: list[_Call] = []
        self.computed: list[tuple[Tensor, Tensor]] = []
        self.path: list[str] = []
        self._known = WeakTensorKeyDictionary()
        self._count = 0
        self._numbered(inputs)

    def seen(self, value: Tensor) -> _Slot | Tensor:
        """What a tensor is known to be: a slot, or numbers, exact where they were computed."""
        found: _Slot | Tensor | None = self._known.get(value)
        return value.detach() if found is None else found

    def _numbered(self, made: Sequence[Any]) -> tuple[_Slot, ...]:
        slots = tuple(_Slot(self._count + k) for k in range(len(made)))
        self._count += len(made)
        for value, slot in zip(made, slots, strict=True):
            if isinstance(value, Tensor):
                self._known[value] = slot
        return slots

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        where = next(reversed(self.path), "") or func.__name__
        seen = tree_map_only(Tensor, self.seen, (args, kwargs))
        depends = any(isinstance(each, _Slot) for each in tree_leaves(seen))
        targets = list(changed(func, args, kwargs))
        for target in targets:
            self._overwrite(target, where, depends=depends)
        result = func(*args, **kwargs)
        single = not isinstance(result, (list, tuple))
        made = (result,) if single else tuple(result)
        if depends:
            symbols, named = seen
            self.tape.append(_Call(func, where, symbols, named, self._numbered(made), single))
        elif not targets and any(isinstance(each, Tensor) for each in tree_leaves(seen)):
            self._keep_exact(func, seen, made)
        return result

    def _keep_exact(self, func: Any, seen: Any, made: Sequence[Any]) -> None:
        """Compute numbers that are computed from numbers once more, without rounding."""
        args, kwargs = tree_map(wide, seen)
        exact = func(*args, **kwargs)
        for value, number in zip(made, [exact] if len(made) == 1 else exact, strict=False):
            if isinstance(number, Tensor) and number.shape == value.shape:
                self._known[value] = number
                self.computed.append((number, value.clone()))

    def _overwrite(self, target: Tensor, where: str, *, depends: bool) -> None:
        """See that what is changed in place is nobody else's memory, or forget what it held."""
        memory = target.untyped_storage().data_ptr()
        others = [each for each in self._known if each.untyped_storage().data_ptr() == memory]
        if not depends:
            for other in others:
                del self._known[other]  # numbers, which the run itself computes
        elif [*map(id, others)] != [id(target)] or not isinstance(self.seen(target), _Slot):
            msg = f"memory that others may see is changed in place at {where}"
            raise UnsupportedModelError(msg)


@contextmanager
def _named(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the path of the submodule that runs."""
    paths = {id(part): path for path, part in module.named_modules()}

    def enter(part: nn.Module, _: Any) -> None:
        recorder.path.append(paths.get(id(part), ""))

    def leave(_part: nn.Module, _args: Any, _result: Any) -> None:
        recorder.path.pop()

    handles = (
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in tensors(each)]
    return []
