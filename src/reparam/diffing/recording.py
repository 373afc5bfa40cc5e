"""Read a network into normal form: run it once, and see each operator as it is carried out.

A run costs what running costs, and it sees what any code does, whoever wrote it: a module, an
exported program, an ONNX graph whose operators are carried out by torch. What it cannot see is a
number taken out of a tensor; what it refuses is memory changed in place that others see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from reparam.diffing import aten  # noqa: F401 (it enters its operators)
from reparam.diffing.table import HANDLERS
from reparam.diffing.values import Form
from reparam.diffing.vocabulary import Vocabulary, read
from reparam.errors import UnsupportedModelError

__all__ = ["Recorder", "SharedMemoryError", "read_run"]


class SharedMemoryError(UnsupportedModelError):
    """A network changes memory in place that others may see."""


def read_run(
    run: Callable[[Recorder, list[Tensor]], list[Any]], like: Sequence[Tensor]
) -> list[Form]:
    """Return what a run returns in normal form, for inputs like these.

    Raises:
        UnsupportedModelError: It holds an operator that normal form does not know, or does
            something with its values that is no operator on tensors.

    """
    # Numbers other than those that the reading is checked with: what is not seen then shows.
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.rand(x.shape, generator=generator).to(x.dtype) if x.is_floating_point() else x.clone()
        for x in like
    ]
    recorder = Recorder(inputs)
    with torch.no_grad(), recorder:
        results = run(recorder, inputs)
    recorder.check_rounding()
    outputs = [recorder.seen(value) for value in results]
    return read(lambda words: _replay(words, recorder, outputs, [x.shape for x in inputs]))


@dataclass(frozen=True)
class _Slot:
    """A value that depends on the inputs, by its number."""

    index: int


@dataclass(frozen=True, eq=False)
class _Call:
    """An operator, its arguments (slots, and numbers that depend on no input), its results.

    Attributes:
        shape: Shape of its result, or of the first of several.

    """

    func: Any
    where: str
    args: Any
    kwargs: Any
    results: tuple[_Slot, ...]
    single: bool
    shape: Sequence[int] | None


class Recorder(TorchDispatchMode):
    """Writes down each operator on a tensor that depends on the inputs.

    Attributes:
        path: Where the run is: the submodules that it has entered, or the node of a graph.

    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        """Begin with the inputs."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape: list[_Call] = []
        self.computed: list[tuple[Tensor, Tensor]] = []
        self.path: list[str] = []
        self._known = WeakTensorKeyDictionary()
        self._count = 0
        self._stored = 0.0
        self._rounded: dict[float, str] = {}
        self._numbered(inputs)

    def seen(self, value: Tensor) -> _Slot | Tensor:
        """What a tensor is known to be: a slot, or numbers, exact where they were computed."""
        found: _Slot | Tensor | None = self._known.get(value)
        return value.detach() if found is None else found

    def depends(self, values: Any) -> bool:
        """Whether any of the tensors among some values depends on the inputs."""
        tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
        return any(isinstance(self.seen(tensor), _Slot) for tensor in tensors)

    def _numbered(self, made: Sequence[Any]) -> tuple[_Slot, ...]:
        slots = tuple(_Slot(self._count + k) for k in range(len(made)))
        self._count += len(made)
        for value, slot in zip(made, slots, strict=True):
            if isinstance(value, Tensor):
                self._known[value] = slot
        return slots

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry an operator out and write it down."""
        kwargs = kwargs or {}
        if func._can_decompose() and not _is_known(func):  # noqa: SLF001 (seen in inference mode)
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        where = next(reversed(self.path), "") or func.__name__
        seen = tree_map_only(Tensor, self.seen, (args, kwargs))
        depends = any(isinstance(each, _Slot) for each in tree_leaves(seen))
        targets = list(_changed(func, args, kwargs))
        for target in targets:
            self._overwrite(target, where, depends=depends)
        result = func(*args, **kwargs)
        single = not isinstance(result, (list, tuple))
        made = (result,) if single else tuple(result)
        if depends:
            self._watch_types((args, kwargs), made, where)
            symbols, named = seen
            slots, shape = self._numbered(made), getattr(next(iter(made), None), "shape", None)
            self.tape.append(_Call(func, where, symbols, named, slots, single, shape))
        elif not targets and any(isinstance(each, Tensor) for each in tree_leaves(seen)):
            self._keep_exact(func, seen, made)
        return result

    def _watch_types(self, given: Any, made: Sequence[Any], where: str) -> None:
        """Note in what weights are stored, and where values become coarser than they were."""
        units = [(_unit(leaf), self._known.get(leaf)) for leaf in tree_leaves(given)
                 if isinstance(leaf, Tensor)]  # fmt: skip
        self._stored = max([self._stored, *(unit for unit, known in units if known is None)])
        before = min((unit for unit, known in units if isinstance(known, _Slot)), default=0.0)
        for value in made:
            if isinstance(value, Tensor) and _unit(value) > before > 0:
                self._rounded.setdefault(_unit(value), f"{where} rounds to {value.dtype}")

    def check_rounding(self) -> None:
        """See that no value is rounded to less than what weights are stored in.

        Raises:
            UnsupportedModelError: One is, which is no matter of stored weights.

        """
        for unit, told in self._rounded.items():
            if unit > self._stored:
                raise UnsupportedModelError(f"{told}, coarser than its weights are stored")

    def carry_out(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Carry an operator out that a graph names, and write it down whole if it is known so."""
        if not (isinstance(func, OpOverload) and func._can_decompose() and _is_known(func)):  # noqa: SLF001
            return func(*args, **kwargs)
        with _disable_current_modes():
            return self.__torch_dispatch__(func, (), args, kwargs)

    def _keep_exact(self, func: Any, seen: Any, made: Sequence[Any]) -> None:
        """Compute numbers that are computed from numbers once more, without rounding."""
        args, kwargs = tree_map(_wide, seen)
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
            raise SharedMemoryError(msg)


def _replay(
    words: Vocabulary, recorder: Recorder, outputs: Sequence[_Slot | Tensor],
    shapes: Sequence[Sequence[int]],
) -> list[Form]:  # fmt: skip
    known: dict[int, Any] = {k: words.build.input(k, shape) for k, shape in enumerate(shapes)}

    def value(slot: _Slot) -> Any:
        return known[slot.index]

    for exact, run in recorder.computed:
        words.rounded(exact, run)
    for key, each in enumerate(recorder.tape):
        args, kwargs = tree_map_only(_Slot, value, (each.args, each.kwargs))
        made = words.noted(key, _called(words, each, args, kwargs))
        results = (made,) if each.single else made
        known.update(
            (slot.index, result) for slot, result in zip(each.results, results, strict=False)
        )
    return [words.form(value(each) if isinstance(each, _Slot) else each) for each in outputs]


def _called(words: Vocabulary, call: _Call, args: Any, kwargs: Any) -> Any:
    """What an operator makes of forms and numbers."""
    target, where = call.func, call.where
    name = _name(target)
    if name == "_assert_tensor_metadata":  # of types that are not kept here
        return None
    if not any(isinstance(each, Form) for each in tree_leaves((args, kwargs))):
        args, kwargs = tree_map(_wide, (args, kwargs))
        return target(*args, **kwargs)
    if name.startswith(_FRESH) or name.endswith("_like"):  # reads a shape alone
        args, kwargs = tree_map(_blank, (args, kwargs))
        return target(*args, **kwargs)
    handler = HANDLERS.get(name.removesuffix("_"))
    if handler is None:
        raise UnsupportedModelError(f"{target} at {where} has no normal form")
    return words.translated(handler, str(target), where, call.shape, args, kwargs)


def _unit(value: Tensor) -> float:
    """Unit of rounding of the type of a tensor, twice; 0 where it is exact."""
    return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0


def _name(target: Any) -> str:
    return str(target).removeprefix("aten.").partition(".")[0]


def _is_known(target: Any) -> bool:
    return _name(target).removesuffix("_") in HANDLERS


_FRESH = ("new_empty", "new_full", "new_ones", "new_zeros")


def _blank(value: Any) -> Any:
    return torch.zeros(value.shape) if isinstance(value, Form) else value


def _wide(value: Any) -> Any:
    """Weights that are computed from others are computed without rounding to speak of."""
    if value is torch.float32:
        return torch.float64
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(torch.float64) if floating else value


def _changed(target: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """The arguments that an operator changes in place."""
    schema = getattr(target, "_schema", None)
    for position, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if leaf is not None)
