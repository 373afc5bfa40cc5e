"""Run a network in normal form, in float64: to check how it was read, and to show a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reparam.diffing.kinds import KINDS
from reparam.diffing.values import Atom, Constant, Cut, Form, Input, Map, Operation, Sized


class Run:
    """Values of one network for given inputs.

    ``instead`` replaces forms or atoms by others; ``shake`` moves every number of the maps by this
    share of its size, up or down, as rounding would; ``kind`` is the type that it computes in.
    """

    def __init__(
        self, inputs: Sequence[Tensor], instead: Mapping[int, Tensor] | None = None, *,
        shake: float = 0.0, kind: torch.dtype = torch.float64,
    ) -> None:  # fmt: skip
        self._shake, self._kind = shake, kind
        self._draw = torch.Generator().manual_seed(0)
        self._inputs = [x.to(kind) if x.is_floating_point() else x for x in inputs]
        self._known: dict[int, Tensor] = dict(instead or {})

    def __call__(self, value: Form | Atom) -> Tensor:
        """What a form or an atom is for these inputs."""
        if id(value) not in self._known:
            for waiting in _unknown(value, self._known):
                self._known[id(waiting)] = self._computed(waiting)
        return self._known[id(value)]

    def _computed(self, value: Form | Atom) -> Tensor:
        match value:
            case Input(index=index):
                return self._inputs[index]
            case Constant(numbers=numbers):
                return numbers.value.to(self._kind)
            case Cut(form=form):
                return self._known[id(form)]
            case Operation(kind=kind, args=args, attributes=attributes):
                return KINDS[kind](*(self._known[id(arg)] for arg in args), **dict(attributes))
            case Form():
                return self.map(value, [self._known[id(atom)] for atom, _ in value.terms])

    def map(self, form: Form, atoms: Sequence[Tensor]) -> Tensor:
        """Apply the maps of a form to values of its atoms."""
        total: Tensor | None = None
        for (_, m), value in zip(form.terms, atoms, strict=True):
            part = _mapped(self._shaken(m), value, form.axis)
            total = part if total is None else total + part
        assert total is not None  # noqa: S101 (a form has a term)
        if form.bias is None:
            return total
        bias = self._moved(form.bias.value, form.bias.size).to(self._kind)
        if bias.dim() == 1 and form.axis is not None:
            bias = bias.reshape(-1, *(1,) * (len(form.shape) - 1 - form.axis))
        return total + bias

    def _shaken(self, m: Map | Sized) -> Map | Sized:
        if not self._shake:
            return m
        if isinstance(m, Sized):
            return Sized(self._moved(m.value, m.size))
        return Map(m.geometry, self._moved(m.numbers(), m.sizes()))

    def _moved(self, numbers: Tensor, size: Tensor) -> Tensor:
        if not self._shake:
            return numbers
        signs = torch.randint(2, numbers.shape, generator=self._draw, dtype=torch.float64)
        return numbers + self._shake * size * (2 * signs - 1)


def _mapped(m: Map | Sized, value: Tensor, axis: int | None) -> Tensor:
    if isinstance(m, Sized):
        return value * m.value
    assert axis is not None  # noqa: S101 (maps act on an axis)
    return m.applied(value, axis)


def _unknown(form: Form | Atom, known: Mapping[int, Tensor]) -> list[Form | Atom]:
    """What has to be computed for a form, in order; without recursion, for nets are deep."""
    order: list[Form | Atom] = []
    seen: set[int] = set()
    stack: list[tuple[Form | Atom, bool]] = [(form, False)]
    while stack:
        value, ready = stack.pop()
        if id(value) in known or (id(value) in seen and not ready):
            continue
        if ready:
            order.append(value)
            continue
        seen.add(id(value))
        stack.append((value, True))
        stack += [(each, False) for each in reads(value)]
    return order


def reads(value: Form | Atom) -> tuple[Form | Atom, ...]:
    """What a value is computed from."""
    match value:
        case Form(terms=terms):
            return tuple(atom for atom, _ in terms)
        case Operation(args=args):
            return args
        case Cut(form=form):
            return (form,)
        case _:
            return ()


def furthest_apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two values in a list, as a share of the largest number there."""
    pairs = zip(found, expected, strict=True)
    return max((_apart(a.to(torch.float64), b.to(torch.float64)) for a, b in pairs), default=0.0)


def _apart(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    scale = max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
    apart = (found - expected).abs().max().item() / scale
    return math.inf if math.isnan(apart) else apart
