"""What a run of a network was: its operators, one after another, on values known by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reparam.diffing import aten  # noqa: F401 (it enters its operators)
from reparam.diffing.notes import Cuts
from reparam.diffing.table import HANDLERS
from reparam.diffing.values import Form
from reparam.diffing.vocabulary import Vocabulary
from reparam.errors import InexactError, UnsupportedModelError


@dataclass(frozen=True)
class Slot:
    """A value that depends on the inputs, by its number."""

    index: int


@dataclass(frozen=True, eq=False)
class Call:
    """An operator, its arguments (slots, and numbers that depend on no input), its results.

    Attributes:
        shape: Shape of its result, or of the first of several.

    """

    func: Any
    where: str
    args: Any
    kwargs: Any
    results: tuple[Slot, ...]
    single: bool
    shape: Sequence[int] | None


@dataclass(frozen=True, eq=False)
class Tape:
    """The operators of a run.

    Attributes:
        calls: First to last.
        outputs: What the run returned; numbers where it depends on no input.
        shapes: Shapes of the inputs.
        computed: Numbers that the network computed from its own, without rounding and with.

    """

    calls: Sequence[Call]
    outputs: Sequence[Slot | Tensor]
    shapes: Sequence[Sequence[int]]
    computed: Sequence[tuple[Tensor, Tensor]]

    def forms(self, *, whole: bool = False) -> list[Form]:
        """The outputs in normal form.

        Which values are cut depends on the order of the calls where each is cut as soon as that is
        known. Where the ``whole`` is read before anything is cut it does not, but takes longer.

        Raises:
            UnsupportedModelError: There is an operator that normal form does not know.

        """
        words = Vocabulary()
        cuts = Cuts(words.build)
        known: dict[int, Any] = {
            k: words.build.input(k, shape) for k, shape in enumerate(self.shapes)
        }

        def value(of: Any) -> Any:
            return known[of.index] if isinstance(of, Slot) else of

        for exact, run in self.computed:
            words.stored.rounded(exact, run)
        step = 0
        while step < len(self.calls):
            call = self.calls[step]
            made = _called(words, call, *each(value, (call.args, call.kwargs)))
            results = cuts.noted(step, (made,) if call.single else made)
            known.update(
                (slot.index, result) for slot, result in zip(call.results, results, strict=False)
            )
            waits = whole and step + 1 < len(self.calls)
            step = step + 1 if waits else cuts.resumed(step)
        return [words.form(value(output)) for output in self.outputs]

    def run(self, inputs: Sequence[Tensor], *, exactly: bool = False) -> list[Tensor]:
        """The outputs for other inputs, as the network computes them, or without rounding."""
        rounded = {} if exactly else {id(exact): run for exact, run in self.computed}
        known = {
            k: x.clone() for k, x in enumerate(each(wide, list(inputs)) if exactly else inputs)
        }

        def value(of: Any) -> Any:
            if isinstance(of, Slot):
                return known[of.index]
            return wide(of) if exactly else rounded.get(id(of), of)

        for call in self.calls:
            args, kwargs = each(value, (call.args, call.kwargs))
            made = call.func(*args, **kwargs)
            results = (made,) if call.single else made
            known.update(
                (slot.index, result) for slot, result in zip(call.results, results, strict=False)
            )
        return [value(output) for output in self.outputs]


def _called(words: Vocabulary, call: Call, args: Any, kwargs: Any) -> Any:
    """What an operator makes of forms and numbers."""
    target, where = call.func, call.where
    name = _name(target)
    if name == "_assert_tensor_metadata":  # of types that are not kept here
        return None
    if not any(isinstance(leaf, Form) for leaf in leaves((args, kwargs))):
        args, kwargs = each(wide, (args, kwargs))
        return target(*args, **kwargs)
    if name.startswith(_FRESH) or name.endswith("_like"):  # reads a shape alone
        args, kwargs = each(_blank, (args, kwargs))
        return target(*args, **kwargs)
    handler = HANDLERS.get(name.removesuffix("_"))
    if handler is None:
        raise UnsupportedModelError(f"{target} at {where} has no normal form")
    words.build.at, words.shape = where, () if call.shape is None else tuple(call.shape)
    try:
        return handler(words, *args, **kwargs)
    except UnsupportedModelError:
        raise
    except _STRANGE as error:
        raise UnsupportedModelError(
            f"{target} at {where} has no normal form as it is used there: {error}"
        ) from error


_STRANGE = (ArithmeticError, AttributeError, InexactError, LookupError, RuntimeError, TypeError,
            ValueError)  # fmt: skip
"""What arguments of another type, number or size than a rule expects lead to."""


_FRESH = ("new_empty", "new_full", "new_ones", "new_zeros")


def _name(target: Any) -> str:
    return str(target).removeprefix("aten.").partition(".")[0]


def is_known(target: Any) -> bool:
    """Whether an operator has a meaning in normal form."""
    return _name(target).removesuffix("_") in HANDLERS


def _blank(value: Any) -> Any:
    return torch.zeros(value.shape) if isinstance(value, Form) else value


def leaves(values: Any) -> Iterator[Any]:
    """What arguments of an operator are; they hold lists of numbers and tensors at most."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (list, tuple, dict)):
            yield from leaves(value)
        else:
            yield value


def each(change: Callable[[Any], Any], values: Any) -> Any:
    """The same arguments, each changed; what torch has for trees takes as long as the operators."""
    if isinstance(values, dict):
        return {name: each(change, value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        made = [each(change, value) for value in values]
        return made if isinstance(values, list) else tuple(made)
    return change(values)


def wide(value: Any) -> Any:
    """A number or type of the same, without rounding to speak of."""
    if isinstance(value, torch.dtype) and value.is_floating_point:
        return torch.float64
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(torch.float64) if floating else value
