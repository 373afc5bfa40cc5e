"""Bring a network to normal form, one operation after another."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import AffineConv, linear, scale
from reparam.diffing.values import Atom, Constant, Cut, Form, Input, Map, Operation, Sized
from reparam.errors import InexactError

__all__ = ["Builder"]


class Builder:
    """Makes the values of one network; equal operations on one value are made once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Form] = {}
        self._alive: list[Form] = []  # what ids in keys stand for has to live as long as they
        self.cuts: dict[int, bool] = {}

    # ------------------------------------------------------------------ atoms

    def input(self, index: int, shape: Sequence[int]) -> Form:
        """An input of the network."""
        return _alone(Input(index, tuple(shape)))

    def constant(self, numbers: Tensor) -> Form:
        """Stored numbers of any shape."""
        return _alone(Constant(Sized.of(numbers), tuple(numbers.shape)))

    def operation(
        self, kind: str, args: Sequence[Form], shape: Sequence[int], where: str, **attributes: Any
    ) -> Form:
        """What an operation that is not affine returns."""
        named = tuple(sorted((name, _frozen(value)) for name, value in attributes.items()))
        key = (kind, named, tuple(_identity(arg) for arg in args))
        if key not in self._known:
            self._alive += args
            made = Operation(kind, tuple(args), named, tuple(shape), where)
            self._known[key] = _alone(made)
        return self._known[key]

    def layout(
        self, kind: str, form: Form, shape: Sequence[int], where: str, *, axis: int | None,
        **attributes: Any,
    ) -> Form:  # fmt: skip
        """An operation that treats all channels alike and keeps what is constant in each.

        Such an operation commutes with factors and shifts of channels, so what its argument has of
        these stands behind it in normal form. ``axis`` is where the channels are then, if anywhere.
        """
        if form.axis is not None and axis is None:
            return self.operation(kind, [form], shape, where, **attributes)
        plain, factor, shift = _normalised(form)
        moved = self._moved(kind, plain, tuple(shape), where, attributes)
        if form.axis is None:
            return self.affine(moved, factor, shift, None, where)
        return self.affine(moved, factor, shift, axis, where)

    def _moved(
        self, kind: str, form: Form, shape: tuple[int, ...], where: str, attributes: dict[str, Any]
    ) -> Form:
        """Two moves of one kind are one; one that changes nothing is none."""
        before = form.atom
        if isinstance(before, Operation) and before.kind == kind == "reshape":
            form = before.args[0]
        if isinstance(before, Operation) and before.kind == kind == "permute":
            settings: dict[str, Any] = dict(before.attributes)
            form = before.args[0]
            attributes = {"order": tuple(settings["order"][k] for k in attributes["order"])}
        if kind == "reshape" and form.shape == shape:
            return form
        if kind == "permute" and attributes["order"] == tuple(range(len(shape))):
            return form
        return self.operation(kind, [form], shape, where, **attributes)

    # ------------------------------------------------------------------ affine maps

    def affine(
        self, form: Form, factor: Sized | None, shift: Sized | None, axis: int | None, where: str
    ) -> Form:
        """Multiply by factors and add shifts, along an axis or the same everywhere (None)."""
        if axis is None:
            number = factor or Sized.of(1.0)
            terms = tuple(
                (atom, m.times(number) if isinstance(m, Map) else m * number)
                for atom, m in form.terms
            )
            bias = form.bias if form.bias is None else form.bias * number
            bias = shift if bias is None else bias if shift is None else bias + shift
            return replace(form, terms=terms, bias=bias, where=(*form.where, where))
        channels = form.shape[axis]
        numbers = factor or Sized.of(torch.ones(channels))
        scaled = self.apply(form, Map.diagonal(_spread(numbers, channels)), axis, form.shape, where)
        if shift is None:
            return scaled
        bias = shift if scaled.bias is None else scaled.bias + shift
        return replace(scaled, bias=bias)

    def layer(self, form: Form, op: AffineConv, axis: int, where: str) -> Form:
        """Apply a convolution (``axis`` 1) or a linear map of any axis, with its bias."""
        shape = list(form.shape)
        shape[axis] = op.geometry.out_channels
        if op.geometry.dims:
            shape[2:] = op.geometry.output_size(form.shape[2:])
        applied = self.apply(form, Map.of(op), axis, tuple(shape), where)
        if op.bias is None:
            return applied
        bias = Sized.of(op.bias)
        return replace(applied, bias=bias if applied.bias is None else applied.bias + bias)

    def apply(self, form: Form, outer: Map, axis: int, shape: tuple[int, ...], where: str) -> Form:
        """Apply a linear map to a value, composed with the value's maps where that is exact."""
        composed = self._composed(form, outer, axis)
        if composed is None or _costs_more(composed[0], form, outer):
            form = replace(self.cut(form, priced=composed is not None), where=())
            composed = self._composed(form, outer, axis)
        assert composed is not None  # noqa: S101 (a map of one atom composes with anything)
        terms, bias = composed
        return self._dissolved(Form(shape, axis, terms, bias, (*form.where, where)))

    def add(self, forms: Sequence[Form], shape: tuple[int, ...], where: str) -> Form:
        """Add values of one shape."""
        axes = {form.axis for form in forms if form.axis is not None}
        if len(axes) > 1:
            forms = [self.cut(form) for form in forms]
            axes = set()
        axis = next(iter(axes), None)
        terms: dict[Atom, Map | Sized] = {}
        bias: Sized | None = None
        names: list[str] = []
        for form in forms:
            names += form.where
            if form.bias is not None:
                bias = form.bias if bias is None else bias + form.bias
            for atom, m in form.terms:
                if atom not in terms:
                    terms[atom] = m
                    continue
                total = _sum(terms[atom], m, None if axis is None else shape[axis])
                if total is None:  # equal sizes for this input, but not for every one
                    part = Form(shape, axis, ((atom, m),), None, form.where)
                    terms[Cut(part, priced=False)] = Sized.of(1.0)
                else:
                    terms[atom] = total
        return Form(shape, axis, tuple(terms.items()), bias, tuple(names) or (where,))

    def cat(self, forms: Sequence[Form], axis: int, where: str) -> Form:
        """Join along an axis: each part goes to its own rows."""
        total = sum(form.shape[axis] for form in forms)
        shape = tuple(total if k == axis else n for k, n in enumerate(forms[0].shape))
        parts, start = [], 0
        for form in forms:
            width = form.shape[axis]
            rows = torch.zeros(total, width)
            rows[start : start + width] = torch.eye(width)
            parts.append(self.apply(form, Map.of(linear(rows)), axis, shape, where))
            start += width
        return self.add(parts, shape, where)

    def take(self, form: Form, axis: int, index: Sequence[int], where: str) -> Form:
        """Keep some positions of an axis, in the order given."""
        rows = torch.zeros(len(index), form.shape[axis])
        rows[torch.arange(len(index)), torch.as_tensor(index)] = 1.0
        shape = tuple(len(index) if k == axis else n for k, n in enumerate(form.shape))
        if len(index) == form.shape[axis] and list(index) == list(range(len(index))):
            return form
        return self.apply(form, Map.of(linear(rows)), axis, shape, where)

    def cut(self, form: Form, *, priced: bool = False) -> Form:
        """Name a value, so that what follows is a map of it alone."""
        if form.atom is not None:
            return form
        key = ("cut", id(form), priced)
        if key not in self._known:
            self._alive.append(form)
            self._known[key] = self._priced(form) if priced else _alone(Cut(form, priced))
        self.cuts[id(form)] = priced and self.cuts.get(id(form), True)
        return self._known[key]

    def _priced(self, form: Form) -> Form:
        """Name a value but for the scale and shift of its channels, which go on to its readers."""
        plain, factor, shift = _normalised(form)
        named = plain if plain.atom is not None else _alone(Cut(plain, priced=True))
        return self.affine(named, factor, shift, form.axis, "")

    def _composed(
        self, form: Form, outer: Map, axis: int
    ) -> tuple[tuple[tuple[Atom, Map | Sized], ...], Sized | None] | None:
        if form.axis not in (None, axis):
            return None
        try:
            bias = None
            if form.bias is not None:
                channels = form.shape[axis]
                bias = outer.of_constant(_spread(form.bias, channels))
            terms = tuple(
                (atom, outer.times(m) if isinstance(m, Sized) else outer @ m)
                for atom, m in form.terms
            )
        except InexactError:
            return None
        return terms, bias

    def _dissolved(self, form: Form) -> Form:
        """Compose with what was cut only because of its price, where that pays by now."""
        if form.axis is None or len(form.terms) != 1:
            return form
        ((atom, m),) = form.terms
        if not (isinstance(atom, Cut) and atom.priced and isinstance(m, Map)):
            return form
        inner = None if m.value.geometry.is_diagonal else self._composed(atom.form, m, form.axis)
        if inner is None or _costs_more(inner[0], atom.form, m):
            return form
        terms, bias = inner
        total = bias if form.bias is None else form.bias if bias is None else bias + form.bias
        return replace(form, terms=terms, bias=total, where=(*atom.form.where, *form.where))


def _alone(atom: Atom) -> Form:
    return Form(atom.shape, None, ((atom, Sized.of(1.0)),), None)


def _identity(form: Form) -> tuple[str, int]:
    return ("form", id(form)) if form.atom is None else ("atom", id(form.atom))


def _frozen(value: Any) -> Hashable:
    return tuple(_frozen(each) for each in value) if isinstance(value, (list, tuple)) else value


def _spread(numbers: Sized, channels: int) -> Sized:
    return Sized(numbers.value.expand(channels), numbers.size.expand(channels))


def _costs_more(terms: Iterable[tuple[Atom, Map | Sized]], form: Form, outer: Map) -> bool:
    apart = _weights(form.terms) + outer.value.geometry.weights
    return not outer.value.geometry.is_diagonal and _weights(terms) > apart


def _weights(terms: Iterable[tuple[Atom, Map | Sized]]) -> int:
    return sum(m.value.geometry.weights for _, m in terms if isinstance(m, Map))


def _sum(left: Map | Sized, right: Map | Sized, channels: int | None) -> Map | Sized | None:
    if isinstance(left, Sized) and isinstance(right, Sized):
        return left + right
    assert channels is not None  # noqa: S101 (one of the two is a map, so there is an axis)
    try:
        return _as_map(left, channels) + _as_map(right, channels)
    except InexactError:
        return None


def _as_map(m: Map | Sized, channels: int) -> Map:
    return m if isinstance(m, Map) else Map.diagonal(_spread(m, channels))


def _normalised(form: Form) -> tuple[Form, Sized, Sized | None]:
    """Split ``factor * plain + shift`` off, so that no row of ``plain`` has a scale of its own."""
    if form.axis is None:
        if len(form.terms) != 1:
            return replace(form, bias=None), Sized.of(1.0), form.bias
        ((atom, factor),) = form.terms
        assert isinstance(factor, Sized)  # noqa: S101 (without an axis all terms are factors)
        return _alone(atom), factor, form.bias
    channels = form.shape[form.axis]
    terms = [(atom, _as_map(m, channels)) for atom, m in form.terms]
    rows = torch.cat([m.value.rows(0, channels).kernel.flatten(1) for _, m in terms], 1)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True)).squeeze(1)
    scales = torch.where(largest == 0, 1.0, largest)
    inverse = Map(scale(1 / scales), scale(1 / scales.abs()))
    plain = tuple((atom, inverse @ m) for atom, m in terms)
    if len(plain) == 1 and _is_identity(plain[0][1]):
        kept: Form = _alone(plain[0][0])
    else:
        kept = replace(form, terms=plain, bias=None)
    return kept, Sized.of(scales), form.bias


def _is_identity(m: Map) -> bool:
    return m.value.geometry.is_diagonal and bool((m.value.kernel == 1).all())
