"""Compare two models that should compute the same, with a tolerance that is measured."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reparam._support.arguments import (
    FUNCTION,
    INPUTS,
    MODULE,
    NONE,
    in_training,
    number,
    running_on,
    takes,
)
from reparam._support.untouched import leaves_untouched
from reparam.errors import InputError, TrainingModeError, VerificationError
from reparam.verifying.calling import Runnable, call
from reparam.verifying.outputs import (
    Difference,
    differences,
    is_inexact,
    nothing_to_see,
    numbers,
    structural_difference,
    tensors,
)
from reparam.verifying.rounding import rounding_of
from reparam.verifying.showing import (
    NothingShownWarning,
    changed,
    moved,
    other_inputs,
    unsaturated,
    unvaried,
)
from reparam.verifying.weights import unsound_weight

_FACTOR = 8.0
"""How many times the reference's own rounding error a candidate may differ by."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a candidate is from a reference.

    Attributes:
        max_abs: Largest absolute difference of any floating-point number of the outputs.
        max_rel: The same relative to the largest absolute value of the reference's outputs.
        tolerance: Largest absolute difference that counts as rounding.
        control: Rounding error of the reference itself, from which the tolerance comes.
        agreement: Share of rows with the same top-1 class where the first output is
            ``(N, classes)``, else None.
        unequal: Number of integers and booleans of the outputs that differ.
        undecided: How many of those may differ because the reference's own rounding changes them.
        problem: Why the numbers show nothing: there are none, or they are not finite, or rounding
            changes what there is. None where they do.

    """

    max_abs: float
    max_rel: float
    tolerance: float
    control: float
    agreement: float | None = None
    unequal: int = 0
    undecided: int = 0
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether something was compared, and differs by no more than rounding."""
        within = self.max_abs <= self.tolerance and self.unequal <= self.undecided
        return within and self.problem is None

    def raise_if_different(self) -> None:
        """Raise VerificationError unless ``ok``."""
        if self.problem is not None:
            raise VerificationError(
                f"the comparison of the two models shows nothing: {self.problem}"
            )
        if not self.ok:
            raise VerificationError(f"the two models differ: {self._difference()}")

    def __str__(self) -> str:
        """One line for a person."""
        if self.problem is not None:
            return f"NOTHING SHOWN: {self.problem}"
        if not self.ok:
            return f"DIFFERENT: {self._difference()}"
        top = "" if self.agreement is None else f", top-1 agreement {100 * self.agreement:.2f} %"
        return (
            f"equal: largest difference {self.max_abs:.2e} "
            f"(tolerance {self.tolerance:.2e} from a noise control){top}"
        )

    def _difference(self) -> str:
        parts = []
        if not self.max_abs <= self.tolerance:
            measured = self.tolerance == _FACTOR * self.control
            allowed = (
                f"rounding explains {self.tolerance:.3e} ({_FACTOR:g} times the reference's own "
                f"{self.control:.1e})"
                if measured
                else f"{self.tolerance:.3e} is allowed"
            )
            parts.append(
                f"largest difference {self.max_abs:.3e} ({self.max_rel:.1e} of the largest "
                f"output), where {allowed}"
            )
        if self.unequal > self.undecided:
            parts.append(f"{self.unequal:,} integers or booleans are not equal")
        return "; ".join(parts)


@takes(
    reference=MODULE, candidate=MODULE | FUNCTION, example_inputs=INPUTS, tolerance=number() | NONE
)  # fmt: skip
@leaves_untouched
@torch.no_grad()
def verify(
    reference: nn.Module,
    candidate: Runnable,
    example_inputs: Any,
    *,
    tolerance: float | None = None,
) -> Verdict:
    r"""Compare a candidate with a reference on real inputs.

    The tolerance is not guessed: it is 8 times the larger of two measured rounding errors of the
    reference, its difference from itself in float64 and its difference from itself with noise of
    one unit in the last place on every weight and behind every operation. Integers and booleans
    have to be equal, but for as many as those errors change.

    Numbers that are not finite, or none at all, are never equal. Where an output does not change
    with the inputs, as behind a saturated sigmoid, both models are compared on other inputs as
    well, and before such functions; where that is no help either, a warning says so.

    Args:
        reference: The model as trained, in eval mode.
        candidate: The fused model, or any callable that takes the same arguments and returns the
            same structure; one that is no module may return the tensors in a list.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        tolerance: Largest absolute difference to accept instead of the measured one.

    Raises:
        InputError: An argument cannot be used, a model does not run on the inputs, or the two
            return different structures: types, keys, or shapes.
        TrainingModeError: A model has a batch norm or a dropout in training mode.

    Warns:
        NothingShownWarning: No output changes with the inputs.

    >>> import torch, reparam
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> verify(net, reparam.fuse(net), torch.randn(2, 3, 8, 8)).ok
    True

    """
    for name, model in (("reference", reference), ("candidate", candidate)):
        _check_eval(name, model)
    first = _compare(reference, candidate, example_inputs, tolerance)
    verdict, expected = first.verdict, first.outputs
    culprit = unsound_weight(reference) or unsound_weight(candidate)
    if culprit is not None:
        problem = culprit if verdict.problem is None else f"{culprit}, and {verdict.problem}"
        return dataclasses.replace(verdict, problem=problem)
    if not verdict.ok:
        return verdict
    constant = unvaried(example_inputs, expected, first.rounding)
    other = None
    if constant:
        other, constant = _elsewhere(
            reference, candidate, example_inputs, tolerance, first, constant
        )
    if len(constant) == sum(1 for y in expected if y.numel()):
        warnings.warn(
            "the two models agree, and no output of the reference changes with the inputs by more "
            "than rounding does, so that nothing was shown; give inputs on which it does",
            NothingShownWarning,
            stacklevel=5,
        )
    return other or verdict


def judge(
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    control: Difference,
    *,
    tolerance: float | None = None,
    factor: float = _FACTOR,
) -> Verdict:
    """Judge results of equal shapes by the reference's own rounding."""
    distance = differences(expected, found)
    problem = nothing_to_see(expected, found)
    if problem is None and tolerance is None and control.max_abs == torch.inf:
        problem = "how many results the reference returns depends on its rounding"
    allowed = factor * control.max_abs if tolerance is None else tolerance
    return Verdict(
        distance.max_abs,
        distance.max_abs / (_scale(expected) or 1.0),
        allowed,
        control.max_abs,
        _agreement(expected, found) if problem is None else None,
        distance.unequal,
        round(factor * control.unequal),
        problem,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """Both models' results for one input: the verdict, and what the reference returned."""

    verdict: Verdict
    control: Difference
    outputs: list[Tensor]

    @property
    def rounding(self) -> list[float]:
        """For each output, what counts as rounding."""
        return [_FACTOR * self.control.max_abs] * len(self.outputs)

    def explains(self, expected: list[Tensor], found: list[Tensor]) -> bool:
        """Whether the rounding measured here is that of other results, and explains them."""
        other = differences(expected, found)
        alike = _scale(expected) <= _ALIKE * _scale(self.outputs)
        return alike and not other.unequal and other.max_abs <= _FACTOR * self.control.max_abs


_ALIKE = 4.0
"""How many times larger results may be whose rounding is taken for the same."""


def _compare(
    reference: nn.Module, candidate: Runnable, inputs: Any, tolerance: float | None,
    known: _Run | None = None,
) -> _Run:  # fmt: skip
    """Run both on some inputs; measure the rounding, unless one known already explains all."""
    with running_on("reference", inputs):
        result = call(reference, inputs)
    with running_on("candidate", inputs):
        other = call(candidate, inputs)
    expected, found = list(tensors(result)), list(tensors(other))
    _check_same(result, other, candidate)
    control = Difference()
    if known is not None and known.explains(expected, found):
        control = known.control
    elif tolerance is None and nothing_to_see(expected, found) is None:
        control = rounding_of(reference, inputs, expected)
    return _Run(judge(expected, found, control, tolerance=tolerance), control, expected)


def _elsewhere(
    reference: nn.Module, candidate: Runnable, given: Any, tolerance: float | None, first: _Run,
    constant: set[int],
) -> tuple[Verdict | None, set[int]]:  # fmt: skip
    """Compare where the constant outputs vary; a verdict if both differ, and what still hides."""
    for inputs, bounded in _attempts(given):
        eager = all(_is_eager(model) for model in (reference, candidate))
        try:
            with nullcontext() if bounded or not eager else unsaturated():
                there = _compare(reference, candidate, inputs, tolerance, first)
                before = first.outputs if bounded else list(tensors(call(reference, given)))
        except InputError:
            continue  # the models take no such inputs
        if not there.verdict.ok and there.verdict.problem is None:
            return there.verdict, set()
        constant = constant - changed(before, there.outputs, there.rounding)
        if not constant:
            break
    return None, constant


def _attempts(inputs: Any) -> Iterator[tuple[Any, bool]]:
    """Other inputs, the last ones for models with the bounds of activations taken off."""
    yield moved(inputs), True
    others = list(other_inputs(inputs)) or [inputs]
    yield from ((other, True) for other in others[:-1])
    yield others[-1], False


def _is_eager(model: object) -> bool:
    return isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)


def _check_eval(name: str, model: object) -> None:
    where = in_training(model) if isinstance(model, nn.Module) else None
    if where is not None:
        raise TrainingModeError(
            f"{where} of the {name} is in training mode, where it draws random numbers or uses, "
            f"and writes, the statistics of the batch; needed eval mode: call {name}.eval() first"
        )


def _check_same(expected: Any, found: Any, candidate: Runnable) -> None:
    flat = not _is_eager(candidate) and isinstance(found, list | tuple | Tensor)
    if flat:
        expected, found = list(tensors(expected)), list(tensors(found))
    difference = structural_difference(expected, found)
    if difference is not None:
        raise InputError(f"the two models return different structures: {difference}")


def _scale(expected: Sequence[Tensor]) -> float:
    """Largest finite absolute value."""
    values = [numbers(t).abs() for t in expected if is_inexact(t)]
    return max((float(v[v.isfinite()].max()) for v in values if v.isfinite().any()), default=0.0)


def _agreement(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float | None:
    if not expected or expected[0].dim() != 2 or expected[0].shape[1] < 2:
        return None
    left, right = expected[0].argmax(1).cpu(), found[0].argmax(1).cpu()
    return float((left == right).double().mean())
