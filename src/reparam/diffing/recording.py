"""Read a network: run it once, and see each operator as it is carried out.

A run costs what running costs, and it sees what any code does, whoever wrote it: a module, an
exported program, an ONNX graph whose operators are carried out by torch. What it cannot see is a
number taken out of a tensor; what it refuses is memory changed in place that others see.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from reparam.diffing.tape import Call, Slot, Tape, each, is_known, leaves, wide
from reparam.errors import UnsupportedModelError

Run = Callable[["Recorder", list[Tensor]], list[Any]]
"""Runs a network while a recorder watches."""


class SharedMemoryError(UnsupportedModelError):
    """A network changes memory in place that others may see."""


def record(run: Run, like: Sequence[Tensor]) -> Tape:
    """Return what a run does with inputs like these.

    Raises:
        UnsupportedModelError: It rounds its values to less than its weights, or does something
            with them that is no operator on tensors.

    """
    try:
        return _record(run, like)
    except SharedMemoryError:

        def functional(recorder: Recorder, inputs: list[Tensor]) -> list[Any]:
            """Run with new values in the place of what would be changed."""
            whole = torch.func.functionalize(lambda *given: run(recorder, [*given]))
            return list(whole(*inputs))

        try:
            return _record(functional, like)
        except RuntimeError as error:  # of torch, where what is stored would be changed
            raise SharedMemoryError("stored memory is changed by what depends on inputs") from error


def _record(run: Run, like: Sequence[Tensor]) -> Tape:
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
    return Tape(recorder.tape, outputs, [x.shape for x in inputs], recorder.computed)


class Recorder(TorchDispatchMode):
    """Writes down each operator on a tensor that depends on the inputs.

    Attributes:
        path: Where the run is: the submodules that it has entered, or the node of a graph.

    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape: list[Call] = []
        self.computed: list[tuple[Tensor, Tensor]] = []
        self.path: list[str] = []
        self._known = WeakTensorKeyDictionary()
        self._count = 0
        self._stored = 0.0
        self._rounded: dict[float, str] = {}
        self._numbered(inputs)

    def seen(self, value: Tensor) -> Slot | Tensor:
        """What a tensor is known to be: a slot, or numbers, exact where they were computed."""
        found: Slot | Tensor | None = self._known.get(value)
        return value.detach() if found is None else found

    def _named(self, value: Any) -> Any:
        return self.seen(value) if isinstance(value, Tensor) else value

    def depends(self, values: Any) -> bool:
        """Whether any of the tensors among some values depends on the inputs."""
        tensors = (leaf for leaf in leaves(values) if isinstance(leaf, Tensor))
        return any(isinstance(self.seen(tensor), Slot) for tensor in tensors)

    def _numbered(self, made: Sequence[Any]) -> tuple[Slot, ...]:
        slots = tuple(Slot(self._count + k) for k in range(len(made)))
        self._count += len(made)
        for value, slot in zip(made, slots, strict=True):
            if isinstance(value, Tensor):
                self._known[value] = slot
        return slots

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry an operator out and write it down."""
        kwargs = kwargs or {}
        parts_of = _made_of(func)
        if parts_of is not None:
            with self:
                result = parts_of(*args, **kwargs)
            if result is not NotImplemented:
                return result
        where = next(reversed(self.path), "") or func.__name__
        seen = each(self._named, (args, kwargs))
        parts = list(leaves(seen))
        depends = any(isinstance(part, Slot) for part in parts)
        targets = list(_changed(func, args, kwargs))
        for target in targets:
            self._overwrite(target, where, depends=depends)
        result = func(*args, **kwargs)
        single = not isinstance(result, (list, tuple))
        made = (result,) if single else tuple(result)
        if depends:
            self._watch_types(func, (args, kwargs), made, where)
            symbols, named = seen
            slots, shape = self._numbered(made), getattr(next(iter(made), None), "shape", None)
            self.tape.append(Call(func, where, symbols, named, slots, single, shape))
        elif not targets and self._is_computed(func, parts, args, kwargs):
            self._keep_exact(func, seen, made)
        return result

    def _watch_types(self, func: Any, given: Any, made: Sequence[Any], where: str) -> None:
        """Note in what weights are stored, and where values become coarser than they were."""
        units = [(_unit(leaf), self._known.get(leaf)) for leaf in leaves(given)
                 if isinstance(leaf, Tensor)]  # fmt: skip
        self._stored = max([self._stored, *(unit for unit, known in units if known is None)])
        before = min((unit for unit, known in units if isinstance(known, Slot)), default=0.0)
        for value in made:
            if isinstance(value, Tensor) and _unit(value) > before > 0:
                self._rounded.setdefault(_unit(value), f"{where} rounds to {value.dtype}")
            if isinstance(value, Tensor) and _overflows(func, value.dtype):
                self._rounded.setdefault(math.inf, f"{where} computes in {value.dtype}")

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
        if not (isinstance(func, OpOverload) and func._can_decompose() and is_known(func)):  # noqa: SLF001
            return func(*args, **kwargs)
        with _disable_current_modes():
            return self.__torch_dispatch__(func, (), args, kwargs)

    def _keep_as_read(self, memory: int) -> None:
        """Copy what operators have read of memory before it is changed."""

        def kept(value: Any) -> Any:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() == memory:
                return value.clone()
            return value

        for step, call in enumerate(self.tape):
            args, kwargs = each(kept, (call.args, call.kwargs))
            self.tape[step] = replace(call, args=args, kwargs=kwargs)

    def _is_computed(self, func: Any, seen: Sequence[Any], args: Any, kwargs: Any) -> bool:
        """Whether numbers come of numbers in another way than being looked at in another shape."""
        if not any(isinstance(part, Tensor) for part in seen):
            return False
        given = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return not func.is_view or any(leaf in self._known for leaf in given)

    def _keep_exact(self, func: Any, seen: Any, made: Sequence[Any]) -> None:
        """Compute numbers that are computed from numbers once more, without rounding."""
        args, kwargs = each(wide, seen)
        exact = func(*args, **kwargs)
        self.note_exact(made, [exact] if len(made) == 1 else exact)

    def note_exact(self, made: Sequence[Any], exact: Sequence[Any]) -> None:
        """Note what numbers that were computed from numbers are without rounding."""
        for value, number in zip(made, exact, strict=False):
            if isinstance(number, Tensor) and number.shape == value.shape:
                self._known[value] = number
                self.computed.append((number, value.clone()))

    def _overwrite(self, target: Tensor, where: str, *, depends: bool) -> None:
        """See that what is changed in place is nobody else's memory, or forget what it held."""
        memory = target.untyped_storage().data_ptr()
        others = [each for each in self._known if each.untyped_storage().data_ptr() == memory]
        if not depends:
            self._keep_as_read(memory)
            for other in others:
                del self._known[other]  # numbers, which the run itself computes
        elif [*map(id, others)] != [id(target)] or not isinstance(self.seen(target), Slot):
            raise SharedMemoryError(f"memory that others may see is changed in place at {where}")


_ARITHMETIC = frozenset({"add", "sub", "rsub", "mul", "neg", "pow", "sum", "mm", "bmm", "addmm"})


def _overflows(func: Any, kind: torch.dtype) -> bool:
    """Whether an operator computes with whole numbers, which begin anew behind the largest."""
    whole = not (kind.is_floating_point or kind.is_complex)
    return whole and func.__name__.partition(".")[0].removesuffix("_") in _ARITHMETIC


def _unit(value: Tensor) -> float:
    """Unit of rounding of the type of a tensor, twice; 0 where it is exact."""
    return torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0


def _changed(target: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """The arguments that an operator changes in place."""
    for position, name in _written(target):
        value = args[position] if position < len(args) else kwargs.get(name)
        yield from (leaf for leaf in leaves((value,)) if leaf is not None)


@functools.cache
def _written(target: Any) -> tuple[tuple[int, str], ...]:
    """Which arguments those are: their positions and names."""
    schema = getattr(target, "_schema", None)
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(schema.arguments if schema is not None else ())
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@functools.cache
def _made_of(target: Any) -> Callable[..., Any] | None:
    """What carries an operator out by others, if there is such and it is not known as it is."""
    if is_known(target):
        return None
    if target.__name__.partition(".")[0] in _MOVES:
        return decomposition_table.get(target)
    return target.decompose if target._can_decompose() else None  # noqa: SLF001 (seen in inference mode)


_MOVES = frozenset({
    "channel_shuffle", "glu", "pixel_shuffle", "pixel_unshuffle", "roll", "rot90", "t", "unbind",
})  # fmt: skip
"""Operators that torch itself writes by simpler ones."""
