"""Bring a network to normal form, one operation after another: atoms, and affine maps of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import linear, parallel, zero_pad
from reparam.diffing.crops import crop, in_space, is_spatial, reads_input, within_borders
from reparam.diffing.values import (
    Atom,
    Constant,
    Cut,
    Form,
    Input,
    Map,
    Operation,
    Sized,
    after,
    as_map,
    sum_of,
)
from reparam.errors import InexactError


class Builder:
    """Makes the values of one network; equal operations on one value are made once."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Form] = {}
        self._alive: list[Form] = []  # what ids in keys stand for has to live as long as they
        self.cuts: dict[int, bool] = {}
        self.at = ""

    # ------------------------------------------------------------------ atoms

    def input(self, index: int, shape: Sequence[int]) -> Form:
        """An input of the network."""
        return alone(Input(index, tuple(shape)))

    def constant(self, numbers: Sized) -> Form:
        """Stored numbers of any shape."""
        return alone(Constant(numbers, tuple(numbers.value.shape), self.at))

    def operation(
        self,
        kind: str,
        args: Sequence[Form],
        shape: Sequence[int],
        *,
        at: str = "",
        **attributes: Any,
    ) -> Form:
        """What an operation that is not affine returns."""
        named = tuple(sorted((name, _frozen(value)) for name, value in attributes.items()))
        key = (kind, named, tuple(_identity(arg) for arg in args))
        if key not in self._known:
            self._alive += args
            made = Operation(kind, tuple(args), named, tuple(shape), at or self.at)
            self._known[key] = alone(made)
        return self._known[key]

    # ------------------------------------------------------------------ affine maps

    def affine(
        self, form: Form, factor: Sized | None, shift: Sized | None, axis: int | None
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
            return replace(form, terms=terms, bias=bias, where=(*form.where, self.at))
        channels = form.shape[axis]
        numbers = factor or Sized.of(torch.ones(channels))
        scaled = self.apply(form, Map.diagonal(numbers.spread(channels)), axis, form.shape)
        if shift is None:
            return scaled
        bias = shift if scaled.bias is None else scaled.bias + shift
        return replace(scaled, bias=bias)

    def layer(self, form: Form, outer: Map, axis: int, shift: Tensor | None = None) -> Form:
        """Apply a convolution (``axis`` 1) or a linear map of any axis, with its bias."""
        shape = list(form.shape)
        shape[axis] = outer.geometry.out_channels
        if outer.geometry.dims:
            shape[2:] = outer.geometry.output_size(form.shape[2:])
        applied = self.apply(form, outer, axis, tuple(shape))
        if shift is None:
            return applied
        bias = Sized.of(shift)
        return replace(applied, bias=bias if applied.bias is None else applied.bias + bias)

    def apply(self, form: Form, outer: Map, axis: int, shape: tuple[int, ...]) -> Form:
        """Apply a linear map to a value, composed with the value's maps where that is exact."""
        if axis == 1:
            form = in_space(form)
        pays = _pays(form, outer, axis)
        if not pays:
            form = self.cut(form, priced=pays is not None)
        terms, bias = _composed(form, outer, axis)
        return self._dissolved(Form(shape, axis, terms, bias, (*form.where, self.at)))

    def add(self, forms: Sequence[Form], shape: tuple[int, ...]) -> Form:
        """Add values of one shape."""
        axes = {form.axis for form in forms if form.axis is not None}
        if len(axes) > 1:
            forms = [in_space(form) for form in forms]
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
                both = sum_of(terms[atom], m, None if axis is None else shape[axis])
                if both is None:  # equal sizes for this input, but not for every one
                    part = Form(shape, axis, ((atom, m),), None, form.where)
                    terms[Cut(part, priced=False)] = Sized.of(1.0)
                else:
                    terms[atom] = both
        terms = within_borders(terms)
        if axis is None and any(isinstance(m, Map) for m in terms.values()):
            axis = 1
        total = Form(shape, axis, tuple(terms.items()), bias, tuple(names) or (self.at,))
        return self._merged(total)

    def _merged(self, total: Form) -> Form:
        """Write what was cut for its price by its own atoms, where the sum reads those anyway."""
        for cut, m in total.terms:
            if not (isinstance(cut, Cut) and cut.priced and _is_cheap(total, cut, m)):
                continue
            rest = replace(total, terms=tuple(t for t in total.terms if t[0] is not cut))
            assert total.axis is not None  # noqa: S101 (there is a map)
            outer = as_map(m, total.shape[total.axis])
            terms, bias = _composed(cut.form, outer, total.axis)
            part = Form(total.shape, total.axis, terms, bias, cut.form.where)
            return self.add([rest, part], total.shape)
        return total

    def cat(self, forms: Sequence[Form], axis: int) -> Form:
        """Join along an axis: each part goes to its own rows."""
        total = sum(form.shape[axis] for form in forms)
        if any(form.axis not in (None, axis) for form in forms):
            forms = [in_space(form) for form in forms]
        shape = tuple(total if k == axis else n for k, n in enumerate(forms[0].shape))
        parts, start = [], 0
        for form in forms:
            width = form.shape[axis]
            if is_spatial(form, axis):
                pads = [(0, 0)] * (len(shape) - 2)
                pads[axis - 2] = (start, total - start - width)
                parts.append(self.layer(form, Map.of(zero_pad(form.shape[1], pads)), 1))
            else:
                rows = torch.zeros(total, width)
                rows[start : start + width] = torch.eye(width)
                parts.append(self.apply(form, Map.of(linear(rows)), axis, shape))
            start += width
        return self.add(parts, shape)

    def take(self, form: Form, axis: int, index: Sequence[int]) -> Form:
        """Keep some positions of an axis, in the order given."""
        if form.axis not in (None, axis):
            form = in_space(form)
        if is_spatial(form, axis):
            op = crop(index, form.shape, axis)
            if op is not None:
                return self.layer(form, Map.of(op), 1)
        rows = torch.zeros(len(index), form.shape[axis])
        rows[torch.arange(len(index)), torch.as_tensor(index)] = 1.0
        shape = tuple(len(index) if k == axis else n for k, n in enumerate(form.shape))
        if len(index) == form.shape[axis] and list(index) == list(range(len(index))):
            return form
        return self.apply(form, Map.of(linear(rows)), axis, shape)

    @staticmethod
    def varying(form: Form, numbers: Tensor) -> bool:
        """Whether numbers can be added as a bias that is not the same at every position."""
        alike = numbers.dim() < len(form.shape) or bool((numbers == numbers[:1]).all())
        return form.axis == 1 and len(form.shape) > 3 and alike

    def written(self, form: Form, numbers: Tensor, axis: int, index: Sequence[int]) -> Form | None:
        """Write numbers to positions of a spatial axis at which only the bias is not zero.

        None where there is more, or where the numbers differ over the batch.
        """
        inside = (
            not isinstance(m, Map) or reads_input(m.geometry, atom.shape, axis - 2, index)
            for atom, m in form.terms
        )
        shape = (*form.shape[:axis], len(index), *form.shape[axis + 1 :])
        given = numbers.double().expand(shape)
        if form.axis not in (None, 1) or any(inside) or not bool((given == given[:1]).all()):
            return None
        bias = (form.bias or Sized.of(0.0)).over(len(form.shape) - 1)
        place = torch.tensor(list(index))
        value, size = (
            each.expand(form.shape[1:]).index_copy(axis - 1, place, new)
            for each, new in ((bias.value, given[0]), (bias.size, given[0].abs()))
        )
        return replace(form, bias=Sized(value, size))

    @staticmethod
    def without_padding(
        form: Form, pads: Sequence[tuple[int, int]], value: float
    ) -> tuple[Form, Sequence[tuple[int, int]]]:
        """Read a value that was padded by a number as one that is yet to be."""
        atom = form.atom
        given = dict[str, Any](atom.attributes) if isinstance(atom, Operation) else {}
        if not isinstance(atom, Operation) or atom.kind != "pad" or given.get("value") != value:
            return form, pads
        before = [(0, 0)] * (len(pads) - len(given["pads"])) + list(given["pads"])
        both = zip(before, pads, strict=True)
        return atom.args[0], [(a + low, b + high) for (a, b), (low, high) in both]

    def unscaled(self, form: Form) -> tuple[Form, float]:
        """Divide a value by its largest number, which no choice of the front end changes."""
        numbers = [m.largest if isinstance(m, Map) else m.value for _, m in form.terms]
        numbers += [] if form.bias is None else [form.bias.value]
        largest = max(float(each.abs().max()) for each in numbers)
        if largest in (0.0, 1.0) or not math.isfinite(largest):
            return form, 1.0
        return self.affine(form, Sized.of(1 / largest), None, None), largest

    def cut(self, form: Form, *, priced: bool = False) -> Form:
        """Name a value, so that what follows is a map of it alone."""
        if form.atom is not None:
            return form
        key = ("cut", id(form), priced)
        if key not in self._known:
            self._alive.append(form)
            self._known[key] = self._priced(form) if priced else alone(Cut(form, priced))
        self.cuts[id(form)] = priced and self.cuts.get(id(form), True)
        return self._known[key]

    def _priced(self, form: Form) -> Form:
        """Name a value but for the scale and shift of its channels, which go on to its readers."""
        plain, factor, shift = normalised(form)
        named = plain if plain.atom is not None else alone(Cut(plain, priced=True))
        return replace(self.affine(named, factor, shift, form.axis), where=form.where)

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


def alone(atom: Atom) -> Form:
    """The value that an atom is."""
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
        bias = outer.of_constant(form.bias, form.shape[axis + 1 :])
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
        for _, m in form.terms:
            inner = m.geometry if isinstance(m, Map) else None
            apart += 0 if inner is None else inner.weights
            together += by.weights if inner is None else after(by, inner).weights
    except InexactError:
        return None
    return by.is_diagonal or together <= apart


def _is_cheap(total: Form, cut: Cut, m: Map | Sized) -> bool:
    """Whether a sum has a map of each atom of a value, so that the value costs no more with it."""
    present = dict(total.terms)
    axis = total.axis
    if axis is None or cut.form.axis not in (None, axis):
        return False
    before = after_it = 0
    try:
        outer = as_map(m, total.shape[axis]).geometry
        for atom, n in cut.form.terms:
            if atom not in present:
                return False
            inner = as_map(n, cut.shape[axis]).geometry
            known = as_map(present[atom], total.shape[axis]).geometry
            dims = max(outer.dims, inner.dims, known.dims)
            both = parallel(after(outer, inner).in_dims(dims), known.in_dims(dims))
            before += inner.weights + known.weights
            after_it += both.weights
    except InexactError:
        return False
    return after_it <= before + outer.weights


def normalised(form: Form) -> tuple[Form, Sized, Sized | None]:
    """Split ``factor * plain + shift`` off, so that no row of ``plain`` has a scale of its own."""
    if form.axis is None:
        if len(form.terms) != 1:
            return replace(form, bias=None), Sized.of(1.0), form.bias
        ((atom, factor),) = form.terms
        assert isinstance(factor, Sized)  # noqa: S101 (without an axis all terms are factors)
        return alone(atom), factor, form.bias
    channels = form.shape[form.axis]
    terms = [(atom, as_map(m, channels)) for atom, m in form.terms]
    scales = _scales([m for _, m in terms])
    plain = tuple((atom, m.by_rows(1 / scales)) for atom, m in terms)
    if len(plain) == 1 and _is_identity(plain[0][1]):
        kept: Form = alone(plain[0][0])
    else:
        kept = replace(form, terms=plain, bias=None)
    return kept, Sized.of(scales), form.bias


def _scales(maps: Sequence[Map]) -> Tensor:
    """For each row its first large number, so that ties up to rounding do not decide."""
    found = torch.zeros(maps[0].geometry.out_channels, dtype=torch.float64)
    largest = torch.stack([m.largest for m in maps]).amax(0)
    for m in reversed(maps):
        rows = torch.ones_like(found) if m.rows is None else m.rows
        kernel, least = m.kernel.flatten(1), _LARGE * largest / rows.abs()
        large = kernel.abs() >= least[:, None]
        first = kernel.gather(1, large.to(torch.uint8).argmax(1, keepdim=True)).squeeze(1)
        found = torch.where(large.any(1), first.to(torch.float64) * rows, found)
    return torch.where(found == 0, 1.0, found)


_LARGE = 0.7
"""A share of the largest number that symmetric kernels do not hold."""


def _is_identity(m: Map) -> bool:
    return m.geometry.is_diagonal and bool(((m.numbers() - 1).abs() < _EXACT).all())


_EXACT = 4 * torch.finfo(torch.float64).eps
