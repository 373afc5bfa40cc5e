"""Compare two networks: read both, match them, and where they part try to show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam._support.arguments import NONE, TENSORS, takes
from reparam._support.untouched import leaves_untouched
from reparam.diffing.aligning import align
from reparam.diffing.checking import Readings, bound
from reparam.diffing.difference import Difference
from reparam.diffing.matching import Match, Matcher, Parting
from reparam.diffing.reading import Network, Side, open_side
from reparam.diffing.regions import Region, names, region_of, setting
from reparam.diffing.running import furthest_apart
from reparam.diffing.showing import show
from reparam.diffing.values import Atom, Cut, Form, Operation
from reparam.errors import InputError, ReparamError, UnsupportedModelError


@takes(example_inputs=TENSORS | NONE)
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
    return compared(open_side(first, "first"), open_side(second, "second"), example_inputs)


def compared(
    first: Side, second: Side, example_inputs: Tensor | Sequence[Tensor] | None
) -> Difference:
    """Say whether two networks that are opened are the same function.

    Raises:
        InputError: The shape of the inputs is not known, or one does not run on them.

    """
    sides = first, second
    inputs = _inputs(sides, example_inputs)
    shapes = tuple(tuple(x.shape) for x in inputs)
    try:
        expected = [each.outputs([x.clone() for x in inputs]) for each in sides]
    except UnsupportedModelError as error:
        return Difference("not shown", what="unread", detail={"why": str(error)}, shapes=shapes)
    found = _shown(sides, inputs, expected)
    apart = furthest_apart(*expected) if len(expected[0]) == len(expected[1]) else math.inf
    return replace(found, shapes=shapes, apart=apart)


def _shown(
    sides: tuple[Side, Side], inputs: Sequence[Tensor], expected: Sequence[list[Tensor]]
) -> Difference:
    """Read both, match them, and see that each is read as its runtime computes."""
    side = sides[0]
    try:
        tapes, read = [], []
        for side in sides:
            tapes.append(side.read(inputs))
            read.append(tapes[-1].forms())
        matcher, outcomes = _matched(sides, read)
        same = _same(read, outcomes)
        if not same:  # what is cut may depend on an order that is another on either side
            other = [tape.forms(whole=True) for tape in tapes]
            again = _matched(sides, other)
            if _same(other, again[1]):
                read, (matcher, outcomes), same = other, again, True
        readings = Readings(inputs)
        for side, tape, own, outputs in zip(sides, tapes, read, expected, strict=True):
            off = readings.off(side, tape, outputs, [read[0], own] if same else [own])
            if not off <= bound(side):
                detail = {"side": side.name, "off": off}
                return Difference("not shown", what="reading", detail=detail)
        return _compare(read, outcomes, matcher, sides, inputs)
    except Exception as error:  # noqa: BLE001 (nothing is claimed of what is not understood)
        why = str(error) if isinstance(error, ReparamError) else _unforeseen(side, error)
        return Difference("not shown", what="unread", detail={"why": why})


def _matched(
    sides: tuple[Side, Side], read: Sequence[list[Form]]
) -> tuple[Matcher, list[Match | Parting]]:
    """Match what both return."""
    matcher = Matcher(max(side.unit for side in sides))
    return matcher, [matcher.forms(a, b) for a, b in zip(*read, strict=False)]


def _same(read: Sequence[list[Form]], outcomes: Sequence[Match | Parting]) -> bool:
    return len(read[0]) == len(read[1]) and all(isinstance(o, Match) for o in outcomes)


def _unforeseen(side: Side, error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{side.name} holds what normal form does not know ({type(error).__name__}: {text})"


def _inputs(sides: tuple[Side, Side], given: Any) -> list[Tensor]:
    if given is not None:
        inputs = [given] if isinstance(given, Tensor) else list(given)
        if not all(isinstance(x, Tensor) and x.numel() for x in inputs):
            raise InputError("example_inputs must be a tensor or tensors with numbers in them")
        return inputs
    told = [side.shapes for side in sides if side.shapes is not None]
    if not told:
        raise InputError("two modules need example_inputs, tensors of the shape to compare for")
    generator = torch.Generator().manual_seed(0)
    shapes = (_size(each) for each in zip(*told, strict=False))
    return [torch.randn(shape, generator=generator) for shape in shapes]


_FREE = 2, 64
"""Batch and size that are tried where both leave them open."""


def _size(told: Sequence[Sequence[int | None]]) -> list[int]:
    """The shape of an input of which one side may leave open what the other fixes."""
    either = zip(*told, strict=False)
    return [
        next((n for n in sizes if n is not None), _FREE[min(axis, 1)])
        for axis, sizes in enumerate(either)
    ]


def _compare(
    read: Sequence[list[Form]], outcomes: Sequence[Match | Parting], matcher: Matcher,
    sides: tuple[Side, Side], inputs: Sequence[Tensor],
) -> Difference:  # fmt: skip
    left, right = read
    if len(left) != len(right):
        counts = {"left": len(left), "right": len(right)}
        return Difference("different", what="outputs", detail=counts)
    partings = [each for each in outcomes if isinstance(each, Parting)]
    if not partings:
        worst = max((each.worst for each in outcomes if isinstance(each, Match)), default=0.0)
        return Difference("equal", matcher.numbers, worst, 1.0)
    parting = max(partings, key=lambda each: (each.local, each.depth))
    shown = show(parting, matcher, left, right, inputs)
    aligned = align(matcher, left, right)
    ours: Sequence[Form | Atom] = [parting.left]
    others: Sequence[Form | Atom] = [parting.right]
    detail: dict[str, Any] = dict(parting.detail)
    if not parting.local:
        ours, others = aligned.first or left, aligned.second or right
        detail = {"left": _kinds(aligned.first), "right": _kinds(aligned.second)}
    elif parting.what == "attribute":
        detail = {"left": _set(parting.left), "right": _set(parting.right)}
    named = _named(ours), _named(others)
    return Difference(
        "different" if shown.proves() else "not shown",
        matcher.numbers,
        proven=aligned.share,
        what=parting.what,
        where=(", ".join(named[0]), ", ".join(named[1])),
        parts=(tuple(named[0].values()), tuple(named[1].values())),
        detail=detail,
        effect=shown.effect,
        regions=_regions((ours, others), sides, parting),
    )


def _regions(
    values: tuple[Sequence[Form | Atom], Sequence[Form | Atom]], sides: tuple[Side, Side],
    parting: Parting,
) -> tuple[Region, Region]:  # fmt: skip
    """Both sides of the place where the networks part."""
    index: Any = parting.detail.get("index", ())
    first, second = (
        region_of(each, side.kind, numbers, index)
        for each, side, numbers in zip(values, sides, parting.numbers, strict=True)
    )
    return first, second


def _named(values: Sequence[Form | Atom]) -> dict[str, str]:
    """The operations that values are made of: how each is called, and its bare name."""
    return {
        words: name
        for each in values
        for words, name in sorted(names(each), key=lambda n: n[0] == n[1])
    }


def _kinds(values: Sequence[Form | Atom]) -> str:
    return ", ".join(dict.fromkeys(map(_set, values))) or "the end"


def _set(value: Form | Atom) -> str:
    if isinstance(value, Operation):
        return setting(value)
    return "a sum" if isinstance(value, (Cut, Form)) else type(value).__name__.lower()
