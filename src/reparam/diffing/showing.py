"""Find an input for which two networks that part differ, and judge whether rounding explains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.diffing.kinds import KINDS
from reparam.diffing.matching import ROUNDINGS, Matcher, Parting
from reparam.diffing.running import Run
from reparam.diffing.values import Constant, Form, Operation

_VISIBLE = 1e-10
"""An effect of this share of the largest output is no rounding of float64."""

_PLAIN = 1e-4
"""An effect of this share of the largest output needs no search for a larger one."""

_TOGETHER = 2000.0
"""Units of rounding of stored weights, of the largest output, that networks which are the same but
for rounding do not differ by."""

_ABOVE = 8.0
"""Times what rounding was seen to make, so that chance does not decide."""

_STEPS = 20
"""Steps of the search for an input that shows a difference."""


@dataclass(frozen=True)
class Shown:
    """How far outputs are apart for one input, relative to the largest output.

    Attributes:
        alone: What the part that differs changes by itself; None where it cannot be exchanged.
        whole: The first network from the second.
        rest: The first network from the second with that part exchanged.
        rounding: What moving all numbers by as much as those of the matched parts differ makes.
        unit: Unit of rounding of the stored weights.

    """

    alone: Tensor | None
    whole: Tensor
    rest: Tensor
    rounding: Tensor
    unit: float

    @property
    def sought(self) -> Tensor:
        """What is made large."""
        return self.whole if self.alone is None else self.alone

    @property
    def effect(self) -> float:
        """The same as a number."""
        return float(self.sought.detach())

    def proves(self) -> bool:
        """Whether the networks differ.

        A part that differs can be made good by another (a factor of two by one of a half), so it
        tells only where the networks as wholes differ by about as much, and more than rounding
        makes; or where the rest is the same by comparison.
        """
        whole, rest, rounding = (float(x.detach()) for x in (self.whole, self.rest, self.rounding))
        if self.alone is not None and self.effect > _VISIBLE:
            visible = whole > max(_VISIBLE, _ABOVE * rounding) and whole > self.effect / 4
            if visible or self.effect > 2 * rest:
                return True
        return whole > _TOGETHER * self.unit


def show(
    parting: Parting, matcher: Matcher, left: list[Form], right: list[Form],
    inputs: Sequence[Tensor],
) -> Shown:  # fmt: skip
    """The largest difference that an input was found to show."""
    floats = [x.to(torch.float64) if x.is_floating_point() else x for x in inputs]

    def tried(at: Sequence[Tensor]) -> Shown:
        return _apart(parting, matcher, left, right, at)

    best = tried(floats)
    for scale in (4.0, 100.0):
        if best.effect <= _PLAIN:
            larger = [x * scale if x.is_floating_point() else x for x in floats]
            best = max(best, tried(larger), key=lambda shown: shown.effect)
    return (
        best
        if best.effect > _PLAIN
        else max([best, *_climbed(tried, floats)], key=lambda shown: shown.effect)
    )


def _climbed(
    tried: Callable[[Sequence[Tensor]], Shown], inputs: Sequence[Tensor]
) -> Iterator[Shown]:
    """Follow the gradient from a random input that shows little."""
    at = list(inputs)
    for _ in range(_STEPS):
        at = [x.detach().requires_grad_(x.is_floating_point()) for x in at]
        with torch.enable_grad():
            shown = tried(at)
        if not shown.sought.requires_grad:
            return
        free = [x for x in at if x.requires_grad]
        slopes = iter(torch.autograd.grad(shown.sought, free, allow_unused=True))
        with torch.no_grad():
            at = [_stepped(x, next(slopes)) if x.requires_grad else x for x in at]
            yield tried(at)


def _stepped(x: Tensor, slope: Tensor | None) -> Tensor:
    return x if slope is None else x + 0.3 * x.abs().mean() * slope.sign()


def _apart(
    parting: Parting, matcher: Matcher, left: list[Form], right: list[Form],
    inputs: Sequence[Tensor],
) -> Shown:  # fmt: skip
    run, other = Run(inputs), Run(inputs)
    second, first = [run(form) for form in right], [other(form) for form in left]
    whole, nothing = _distance(first, second), torch.zeros(())
    if not parting.exchangeable:
        return Shown(None, whole, whole, nothing, matcher.unit)
    exchanged = Run(inputs, {id(parting.right): _exchanged(parting, matcher, run)})
    changed = [exchanged(form) for form in right]
    alone, rest = _distance(changed, second), _distance(changed, first)
    if alone.requires_grad or not matcher.worst:  # on the way to an input, or nothing is rounded
        return Shown(alone, whole, rest, nothing, matcher.unit)
    shaken = Run(inputs, shake=matcher.worst * ROUNDINGS * matcher.unit)
    rounding = _distance([shaken(form) for form in right], second)
    return Shown(alone, whole, rest, rounding, matcher.unit)


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    changes = [
        (a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        if a.shape == b.shape
        else torch.tensor(float("inf"))
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(changes).max()


def _exchanged(parting: Parting, matcher: Matcher, run: Run) -> Tensor:
    """What the first network computes there, from the operands that the second has."""
    match parting.left, parting.right:
        case Constant() as constant, Constant():
            return constant.numbers.value
        case Operation() as operation, Operation() as other:
            args = [run(arg) for arg in other.args]
            return KINDS[operation.kind](*args, **dict(operation.attributes))
        case Form() as form, Form() as other:
            partner = {
                id(matcher.matched[id(atom)]): atom
                for atom, _ in other.terms
                if id(atom) in matcher.matched
            }
            return run.map(form, [run(partner[id(atom)]) for atom, _ in form.terms])
    raise AssertionError(parting)
