"""Compare two networks: read both, match them, and where they part try to show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam._untouched import leaves_untouched
from reparam.diffing.difference import Difference
from reparam.diffing.kinds import KINDS
from reparam.diffing.matching import Match, Matcher, Parting
from reparam.diffing.reading import Network, Side, open_side
from reparam.diffing.running import Run, reads
from reparam.diffing.values import Atom, Constant, Form, Operation
from reparam.errors import InputError, UnsupportedModelError

__all__ = ["diff"]

_MISREAD = 1e-3
"""Share of the largest output by which a network as read may differ from its own runtime."""

_VISIBLE = 1e-10
"""An effect of this share of the largest output is no rounding of float64."""

_TOGETHER = 1e-4
"""The same where the networks are compared as wholes, with the rounding of all stored weights."""

_STEPS = 20
"""Steps of the search for an input that shows a difference."""

_NAMES = 8
"""Operations that are named, of those that went into one map; the last ones."""


@leaves_untouched
def diff(
    first: Network, second: Network, example_inputs: Tensor | Sequence[Tensor] | None = None
) -> Difference:
    r"""Say whether two networks are the same function, by proof where that is possible.

    Both are brought to normal form: affine maps :math:`y = \sum_k A_k a_k + b` between atoms (the
    inputs, and what operations that are not affine return), composed as far as that is exact.
    Networks are equal if their atoms correspond and the numbers of all maps agree within what
    rounding of stored weights explains: 16 units of rounding of a number's size without
    cancellation. So a net and its fused form, or its export, are compared number by number, and not
    by one output of one random input. Where they part, the part alone is exchanged and an input
    is searched that shows it.

    Args:
        first: A module in eval mode, a ``torch.export.ExportedProgram``, an ``onnx.ModelProto``, or
            the path of an ``.onnx`` or ``.pt2`` file. It is only read.
        second: Another.
        example_inputs: A tensor or tensors of the shape to compare for; taken from a file where one
            of the two is a file that declares them.

    Returns:
        A :class:`Difference`; its ``outcome`` is ``"equal"``, ``"different"`` or ``"not shown"``.

    Raises:
        InputError: One of the two is nothing that can be compared, or the shape of the inputs is
            not known.
        TrainingModeError: A module is in training mode.

    >>> import torch, reparam
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    >>> reparam.diff(net, reparam.fuse(net), torch.randn(1, 3, 8, 8)).outcome
    'equal'

    """
    sides = open_side(first, "first"), open_side(second, "second")
    inputs = _inputs(sides, example_inputs)
    shapes = tuple(tuple(x.shape) for x in inputs)
    outputs: list[list[Form]] = []
    for side, name in zip(sides, ("first", "second"), strict=True):
        try:
            outputs.append(side.read(inputs))
        except UnsupportedModelError as error:
            return Difference("not shown", what="unread", detail={"why": str(error)}, shapes=shapes)
        off = _misread(side, outputs[-1], inputs)
        if not off <= _MISREAD:
            detail = {"side": name, "off": off}
            return Difference("not shown", what="reading", detail=detail, shapes=shapes)
    return _compare(outputs[0], outputs[1], max(side.unit for side in sides), inputs)


def _inputs(sides: tuple[Side, Side], given: Any) -> list[Tensor]:
    if given is not None:
        inputs = [given] if isinstance(given, Tensor) else list(given)
        if not all(isinstance(x, Tensor) for x in inputs):
            raise InputError("example_inputs must be a tensor or a sequence of tensors")
        return inputs
    shapes = next((side.shapes for side in sides if side.shapes is not None), None)
    if shapes is None:
        raise InputError("two modules need example_inputs: tensors of the shape to compare for")
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _misread(side: Side, outputs: Sequence[Form], inputs: Sequence[Tensor]) -> float:
    run = Run(inputs)
    found = [run(form) for form in outputs]
    expected = side.run(inputs)
    return max(_off(a, b.to(torch.float64)) for a, b in zip(found, expected, strict=True))


def _off(found: Tensor, expected: Tensor) -> float:
    scale = max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
    return (found - expected).abs().max().item() / scale


def _compare(
    left: list[Form], right: list[Form], unit: float, inputs: Sequence[Tensor]
) -> Difference:
    shapes = tuple(tuple(x.shape) for x in inputs)
    if len(left) != len(right):
        detail = {"left": len(left), "right": len(right)}
        return Difference("different", what="outputs", detail=detail, shapes=shapes)
    matcher = Matcher(unit)
    outcomes = [matcher.forms(a, b) for a, b in zip(left, right, strict=True)]
    partings = [each for each in outcomes if isinstance(each, Parting)]
    operations = {id(a): a for a in _below(left) if isinstance(a, Operation)}
    matched = sum(
        id(a) in operations for a in {id(a): a for a in matcher.matched.values()}.values()
    )
    proven = 1.0 if not partings else matched / max(len(operations), 1)
    if not partings:
        worst = max((each.worst for each in outcomes if isinstance(each, Match)), default=0.0)
        return Difference("equal", matcher.numbers, worst, 1.0, shapes=shapes)
    parting = max(partings, key=lambda each: (each.local, each.depth))
    effect = _effect(parting, matcher, left, right, inputs)
    visible = effect > (_VISIBLE if parting.exchangeable else _TOGETHER)
    return Difference(
        "different" if visible else "not shown",
        matcher.numbers,
        proven=proven,
        what=parting.what,
        where=(_named(parting.left), _named(parting.right)),
        detail=_detail(parting),
        effect=effect,
        shapes=shapes,
    )


def _effect(
    parting: Parting, matcher: Matcher, left: list[Form], right: list[Form],
    inputs: Sequence[Tensor],
) -> float:  # fmt: skip
    """The largest relative change of an output: of that part alone, or of everything."""
    floats = [x.to(torch.float64) for x in inputs]
    best, at = 0.0, floats
    for scale in (1.0, 4.0):
        tried = [x * scale for x in floats]
        change = _change(parting, matcher, left, right, tried)
        if change > best:
            best, at = float(change), tried
    if best > _TOGETHER:
        return best
    for _ in range(_STEPS):  # climb where a random input shows little
        at = [x.detach().requires_grad_() for x in at]
        with torch.enable_grad():
            change = _change(parting, matcher, left, right, at)
        if not isinstance(change, Tensor) or not change.requires_grad:
            break
        slopes = torch.autograd.grad(change, at, allow_unused=True)
        at = [
            x if g is None else x + 0.3 * x.abs().mean() * g.sign()
            for x, g in zip(at, slopes, strict=True)
        ]
        best = max(best, change.item())
    return best


def _change(
    parting: Parting, matcher: Matcher, left: list[Form], right: list[Form],
    inputs: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    run = Run(inputs)
    expected = [run(form) for form in right]
    if parting.exchangeable:
        exchanged = Run(inputs, {id(parting.right): _exchanged(parting, matcher, run)})
        found = [exchanged(form) for form in right]
    else:
        other = Run(inputs)
        found = [other(form) for form in left]
    changes = [
        (a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        for a, b in zip(found, expected, strict=True)
        if a.shape == b.shape
    ]
    return torch.stack(changes).max() if changes else torch.tensor(float("inf"))


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


def _below(outputs: Sequence[Form]) -> list[Form | Atom]:
    seen: dict[int, Form | Atom] = {}
    stack: list[Form | Atom] = list(outputs)
    while stack:
        value = stack.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            stack += reads(value)
    return list(seen.values())


def _named(value: Form | Atom) -> str:
    match value:
        case Operation(where=where, kind=kind):
            return f"{kind} at {where}"
        case Form(where=where):
            names = list(dict.fromkeys(name for name in where if name))
            return ", ".join(names[-_NAMES:]) or "an input"
        case _:
            return type(value).__name__.lower()


def _detail(parting: Parting) -> dict[str, Any]:
    if parting.what in ("kind", "attribute"):
        return {"left": _set(parting.left), "right": _set(parting.right)}
    return parting.detail


def _set(value: Form | Atom) -> str:
    if not isinstance(value, Operation):
        return type(value).__name__.lower()
    settings = ", ".join(f"{name}={setting}" for name, setting in value.attributes)
    return f"{value.kind}({settings})"
