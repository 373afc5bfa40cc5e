"""Bring a network to normal form, one operation after another."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import AffineConv, Geometry, compose, linear, scale
from reparam.diffing.kinds import POINTWISE
from reparam.diffing.values import Atom, Constant, Cut, Form, Input, Map, Operation, Sized, after
from reparam.errors import InexactError

__all__ = ["Builder", "kept_axis"]


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

    def constant(self, numbers: Tensor, where: str) -> Form:
        """Stored numbers of any shape."""
        return _alone(Constant(Sized.of(numbers), tuple(numbers.shape), where))

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

        Such an operation is linear and commutes with maps that only mix channels, so those stand
        behind it in normal form; of other maps, the factors and shifts of channels do. ``axis`` is
        where the channels are then, if anywhere.
        """
        if form.axis is not None and axis is None:
            return self.operation(kind, [form], shape, where, **attributes)
        if all(isinstance(m, Sized) or m.geometry.is_pointwise for _, m in form.terms):
            return self._moved_atoms(kind, form, tuple(shape), where, axis, attributes)
        plain, factor, shift = _normalised(form)
        moved = self._moved(kind, plain, tuple(shape), where, attributes)
        behind = self.affine(moved, factor, shift, None if form.axis is None else axis, where)
        return replace(behind, where=(*form.where, where))

    def _moved_atoms(
        self, kind: str, form: Form, shape: tuple[int, ...], where: str, axis: int | None,
        attributes: dict[str, Any],
    ) -> Form:  # fmt: skip
        parts = []
        for atom, m in form.terms:
            size, given = list(shape), dict(attributes)
            if form.axis is not None and axis is not None:
                size[axis] = atom.shape[form.axis]  # the map makes other channels of these
                if "to" in given:
                    given["to"] = tuple(size)
            moved = self._moved(kind, _alone(atom), tuple(size), where, given)
            if isinstance(m, Sized):
                parts.append(self.affine(moved, m, None, None, where))
            else:
                assert axis is not None  # noqa: S101 (a map acts on channels)
                parts.append(self.apply(moved, m.in_dims(0), axis, shape, where))
        total = self.add(parts, shape, where)
        axis = total.axis if form.axis is None else axis
        return replace(total, axis=axis, bias=form.bias, where=(*form.where, where))

    def _moved(
        self, kind: str, form: Form, shape: tuple[int, ...], where: str, attributes: dict[str, Any]
    ) -> Form:
        """Two moves of one kind are one; one that changes nothing is none."""
        before = form.atom
        if isinstance(before, Operation) and before.kind == kind == "reshape":
            form = before.args[0]
        if isinstance(before, Operation) and before.kind == kind == "permute":
            order = dict[str, Any](before.attributes)["order"]
            form = before.args[0]
            attributes = {"order": tuple(order[k] for k in attributes["order"])}
        if kind == "reshape" and form.shape == shape:
            return form
        inner = form.atom
        if isinstance(inner, Operation) and kind in _MOVES and _is_pointwise(inner):
            # Optimisers put these on either side of an activation; here they stand before it.
            args = [self._relaid(kind, arg, shape, where, attributes) for arg in inner.args]
            settings: dict[str, Any] = dict(inner.attributes)
            return self.operation(inner.kind, args, shape, inner.where, **settings)
        if kind == "permute" and attributes["order"] == tuple(range(len(shape))):
            return form
        return self.operation(kind, [form], shape, where, **attributes)

    def _relaid(
        self, kind: str, form: Form, shape: tuple[int, ...], where: str, attributes: dict[str, Any]
    ) -> Form:
        axis = form.axis
        if axis is not None and kind == "permute":
            axis = attributes["order"].index(axis)
        elif axis is not None:
            axis = kept_axis(form.shape, axis, shape)
        return self.layout(kind, form, shape, where, axis=axis, **attributes)

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
        scaled = self.apply(form, Map.diagonal(numbers.spread(channels)), axis, form.shape, where)
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
        pays = _pays(form, outer, axis)
        if not pays:
            form = self.cut(form, priced=pays is not None)
        terms, bias = _composed(form, outer, axis)
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

    def unscaled(self, form: Form) -> tuple[Form, float]:
        """Divide a value by its largest number, which no choice of the front end changes."""
        numbers = [m.value.kernel if isinstance(m, Map) else m.value for _, m in form.terms]
        numbers += [] if form.bias is None else [form.bias.value]
        largest = max(float(each.abs().max()) for each in numbers)
        if largest in (0.0, 1.0) or not math.isfinite(largest):
            return form, 1.0
        return self.affine(form, Sized.of(1 / largest), None, None, ""), largest

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
        return replace(self.affine(named, factor, shift, form.axis, ""), where=form.where)

    def _dissolved(self, form: Form) -> Form:
        """Compose with what was cut only because of its price, where that pays by now."""
        if form.axis is None or len(form.terms) != 1:
            return form
        ((atom, m),) = form.terms
        if not (isinstance(atom, Cut) and atom.priced and isinstance(m, Map)):
            return form
        if m.geometry.is_diagonal or not _pays(atom.form, m, form.axis):
            return form
        terms, bias = _composed(atom.form, m, form.axis)
        total = bias if form.bias is None else form.bias if bias is None else bias + form.bias
        return replace(form, terms=terms, bias=total, where=(*atom.form.where, *form.where))


_MOVES = ("permute", "reshape")


def _is_pointwise(operation: Operation) -> bool:
    same = all(arg.shape == operation.shape for arg in operation.args)
    return operation.kind in POINTWISE and same


def kept_axis(before: tuple[int, ...], axis: int, after: tuple[int, ...]) -> int | None:
    """Where an axis is after a reshape, if it is still one."""
    ahead = math.prod(before[:axis])
    for position, size in enumerate(after):
        if size == before[axis] and math.prod(after[:position]) == ahead:
            return position
    return None


def _alone(atom: Atom) -> Form:
    return Form(atom.shape, None, ((atom, Sized.of(1.0)),), None)


def _identity(form: Form) -> tuple[str, int]:
    return ("form", id(form)) if form.atom is None else ("atom", id(form.atom))


def _frozen(value: Any) -> Hashable:
    return tuple(_frozen(each) for each in value) if isinstance(value, (list, tuple)) else value


def _composed(
    form: Form, outer: Map, axis: int
) -> tuple[tuple[tuple[Atom, Map | Sized], ...], Sized | None]:
    """A map after those of a value, once they are known to compose."""
    bias = None
    if form.bias is not None:
        bias = outer.of_constant(form.bias.spread(form.shape[axis]))
    terms = (
        (atom, outer.times(m) if isinstance(m, Sized) else outer @ m) for atom, m in form.terms
    )
    return tuple(terms), bias


def _pays(form: Form, outer: Map, axis: int) -> bool | None:
    """Whether one map costs no more numbers than two; None where one would not be exact."""
    if form.axis not in (None, axis):
        return None
    by = outer.geometry
    apart, together = by.weights, 0
    try:
        if form.bias is not None:
            channels = form.shape[axis]
            compose(by, Geometry.pointwise(channels, channels, dims=by.dims, bias=True))
        for _, m in form.terms:
            inner = m.geometry if isinstance(m, Map) else None
            apart += 0 if inner is None else inner.weights
            together += by.weights if inner is None else after(by, inner).weights
    except InexactError:
        return None
    return by.is_diagonal or together <= apart


def _sum(left: Map | Sized, right: Map | Sized, channels: int | None) -> Map | Sized | None:
    if isinstance(left, Sized) and isinstance(right, Sized):
        return left + right
    assert channels is not None  # noqa: S101 (one of the two is a map, so there is an axis)
    try:
        return _as_map(left, channels) + _as_map(right, channels)
    except InexactError:
        return None


def _as_map(m: Map | Sized, channels: int) -> Map:
    return m if isinstance(m, Map) else Map.diagonal(m.spread(channels))


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
    scales = _scales([m.value.kernel.flatten(1) for _, m in terms])
    inverse = Map(scale(1 / scales))
    plain = tuple((atom, inverse @ m) for atom, m in terms)
    if len(plain) == 1 and _is_identity(plain[0][1]):
        kept: Form = _alone(plain[0][0])
    else:
        kept = replace(form, terms=plain, bias=None)
    return kept, Sized.of(scales), form.bias


def _scales(kernels: Sequence[Tensor]) -> Tensor:
    """For each row its first large number, so that ties up to rounding do not decide."""
    found = torch.zeros(len(kernels[0]), dtype=torch.float64)
    largest = torch.stack([kernel.abs().amax(1) for kernel in kernels]).amax(0)
    for kernel in reversed(kernels):
        large = kernel.abs() >= _LARGE * largest[:, None]
        first = kernel.gather(1, large.to(torch.uint8).argmax(1, keepdim=True)).squeeze(1)
        found = torch.where(large.any(1), first, found)
    return torch.where(found == 0, 1.0, found)


_LARGE = 0.7
"""A share of the largest number that symmetric kernels do not hold."""


def _is_identity(m: Map) -> bool:
    return m.geometry.is_diagonal and bool((m.value.kernel == 1).all())
