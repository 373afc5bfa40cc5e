"""Bring a network to normal form, one operation after another."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import AffineConv, Geometry, linear, parallel, zero_pad
from reparam.diffing.kinds import KINDS, POINTWISE
from reparam.diffing.moves import MOVES, Moves
from reparam.diffing.values import Atom, Constant, Cut, Form, Input, Map, Operation, Sized, after
from reparam.errors import InexactError

__all__ = ["Builder", "kept_axis"]


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
        return _alone(Input(index, tuple(shape)))

    def constant(self, numbers: Sized) -> Form:
        """Stored numbers of any shape."""
        return _alone(Constant(numbers, tuple(numbers.value.shape), self.at))

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
            self._known[key] = _alone(made)
        return self._known[key]

    def layout(
        self, kind: str, form: Form, shape: Sequence[int], *, axis: int | None,
        **attributes: Any,
    ) -> Form:  # fmt: skip
        """An operation that treats all channels alike and keeps what is constant in each.

        Such an operation is linear and commutes with maps that only mix channels, so those stand
        behind it in normal form; of other maps, the factors and shifts of channels do. ``axis`` is
        where the channels are then, if anywhere.
        """
        if form.varies:
            assert form.bias is not None  # noqa: S101 (which varies)
            plain = self.layout(kind, replace(form, bias=None), shape, axis=axis, **attributes)
            field = (
                KINDS[kind](each.expand(form.shape), **attributes)
                for each in (form.bias.value, form.bias.size)
            )
            return self._with_field(plain, Sized(*field), tuple(shape), axis)
        if form.axis is not None and axis is None:
            if kind == "reshape":
                return self._flattened(form, tuple(shape))
            return self.operation(kind, [form], shape, **attributes)
        if _mixes_channels(form):
            return self._moved_atoms(kind, form, tuple(shape), axis, attributes)
        plain, factor, shift = _normalised(form)
        moved = self._moved(kind, plain, tuple(shape), attributes)
        behind = self.affine(moved, factor, shift, None if form.axis is None else axis)
        return replace(behind, where=(*form.where, self.at))

    def _with_field(
        self, form: Form, field: Sized, shape: tuple[int, ...], axis: int | None
    ) -> Form:
        """Add numbers that differ between positions, where there is still more than one."""
        long = [k for k, n in enumerate(shape) if n != 1]
        if long == [axis] or (axis is None and len(long) == 1):
            return self.affine(form, None, field.each(Tensor.flatten), long[0])
        if axis == 1 and form.axis in (None, 1):  # the batch is alike, as the numbers had none
            inner = field.each(lambda each: each[0])
            bias = inner if form.bias is None else form.bias + inner
            return replace(form, axis=1, bias=bias)
        constant = _alone(Constant(field, shape, self.at))
        return self.add([form, constant], shape)

    def _flattened(self, form: Form, shape: tuple[int, ...]) -> Form:
        """Reshape a value whose channels are no axis of the result.

        Where they are part of one, factors and shifts stand behind, one for each of its elements.
        """
        where = _joined(form.shape, form.axis or 0, shape)
        if where is None:
            return self._laid_whole(form, shape)
        axis, group = where
        channels = [n if k == form.axis else 1 for k, n in enumerate(form.shape)][group]

        def spread(each: Tensor) -> Tensor:
            if not each.dim():
                return each
            return each.reshape(channels).expand(form.shape[group]).flatten()

        plain, factor, shift = _normalised(form)
        if plain.axis is None:
            moved = self.layout("reshape", plain, shape, axis=None, to=shape)
        else:
            moved = self._laid_whole(plain, shape)
        scales = None if bool((factor.value == 1).all()) else factor.each(spread)
        moved = moved if scales is None else self.affine(moved, scales, None, axis)
        moved = moved if shift is None else self.affine(moved, None, shift.each(spread), axis)
        return replace(moved, where=(*form.where, self.at))

    def _laid_whole(self, form: Form, shape: tuple[int, ...]) -> Form:
        """Reshape a value with its maps; those of single positions may have been moved before."""
        assert form.axis is not None  # noqa: S101 (the caller's condition)
        if not _mixes_channels(form):
            return self._moved("reshape", form, shape, {"to": shape})
        ahead, behind = math.prod(form.shape[: form.axis]), math.prod(form.shape[form.axis + 1 :])
        plain = tuple(n for n in (ahead, form.shape[form.axis], behind) if n != 1)
        axis = kept_axis(form.shape, form.axis, plain)
        if axis is not None and plain != form.shape:
            form = self.layout("reshape", form, plain, axis=axis, to=plain)
        return self.operation("reshape", [form], shape, to=shape)

    def _moved_atoms(
        self, kind: str, form: Form, shape: tuple[int, ...], axis: int | None,
        attributes: dict[str, Any],
    ) -> Form:  # fmt: skip
        parts = []
        for atom, m in form.terms:
            size, given = list(shape), dict(attributes)
            if form.axis is not None and axis is not None:
                size[axis] = atom.shape[form.axis]  # the map makes other channels of these
                if "to" in given:
                    given["to"] = tuple(size)
            moved = self._moved(kind, _alone(atom), tuple(size), given)
            if isinstance(m, Sized):
                parts.append(self.affine(moved, m, None, None))
            else:
                assert axis is not None  # noqa: S101 (a map acts on channels)
                parts.append(self.apply(moved, m.in_dims(0), axis, shape))
        total = self.add(parts, shape)
        axis = total.axis if form.axis is None else axis
        return replace(total, axis=axis, bias=form.bias, where=(*form.where, self.at))

    def _moved(
        self, kind: str, form: Form, shape: tuple[int, ...], attributes: dict[str, Any]
    ) -> Form:
        """Two moves of one kind are one; one that changes nothing is none."""
        inner = form.atom
        if isinstance(inner, Operation) and inner.kind == kind == "pad":
            both = _joined_pads(dict(inner.attributes), attributes)
            if both is not None:
                form, attributes = inner.args[0], both
        if kind not in MOVES:
            return self.operation(kind, [form], shape, **attributes)
        if isinstance(inner, Operation) and _is_pointwise(inner):
            # Optimisers put these on either side of an activation; here they stand before it.
            args = [self._relaid(kind, arg, shape, attributes) for arg in inner.args]
            settings: dict[str, Any] = dict(inner.attributes)
            return self.operation(inner.kind, args, shape, at=inner.where, **settings)
        if isinstance(inner, Operation) and kind == "reshape" and _keeps_rows(inner, shape):
            args = [self._relaid(kind, arg, shape, attributes) for arg in inner.args]
            last = len(shape) - 1
            along = {"axes": (last,)} if inner.kind == "layer_norm" else {"axis": last}
            settings = {**dict[str, Any](inner.attributes), **along}
            return self.operation(inner.kind, args, shape, at=inner.where, **settings)
        return self._rearranged(kind, form, shape, attributes)

    def _rearranged(
        self, kind: str, form: Form, shape: tuple[int, ...], attributes: dict[str, Any]
    ) -> Form:
        """One more move behind those that a value is made by, all as they are written here."""
        source, made = _source(form)
        after = made.then(kind, shape, attributes.get("order", ()))
        if after is None:
            return self.operation(kind, [form], shape, **attributes)
        value = source
        for step, size, settings in after.steps():
            if value is source is not form:  # which may let the step pass, as it is now
                value = self._moved(step, value, size, settings)
            else:
                value = self.operation(step, [value], size, **settings)
        return value

    def _relaid(
        self, kind: str, form: Form, shape: tuple[int, ...], attributes: dict[str, Any]
    ) -> Form:
        axis = form.axis
        if axis is not None and kind == "permute":
            axis = attributes["order"].index(axis)
        elif axis is not None:
            axis = kept_axis(form.shape, axis, shape)
        return self.layout(kind, form, shape, axis=axis, **attributes)

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
            form = _in_space(form)
        pays = _pays(form, outer, axis)
        if not pays:
            form = self.cut(form, priced=pays is not None)
        terms, bias = _composed(form, outer, axis)
        return self._dissolved(Form(shape, axis, terms, bias, (*form.where, self.at)))

    def add(self, forms: Sequence[Form], shape: tuple[int, ...]) -> Form:
        """Add values of one shape."""
        axes = {form.axis for form in forms if form.axis is not None}
        if len(axes) > 1:
            forms = [_in_space(form) for form in forms]
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
                both = _sum(terms[atom], m, None if axis is None else shape[axis])
                if both is None:  # equal sizes for this input, but not for every one
                    part = Form(shape, axis, ((atom, m),), None, form.where)
                    terms[Cut(part, priced=False)] = Sized.of(1.0)
                else:
                    terms[atom] = both
        terms = _within_borders(terms)
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
            outer = _as_map(m, total.shape[total.axis])
            terms, bias = _composed(cut.form, outer, total.axis)
            part = Form(total.shape, total.axis, terms, bias, cut.form.where)
            return self.add([rest, part], total.shape)
        return total

    def cat(self, forms: Sequence[Form], axis: int) -> Form:
        """Join along an axis: each part goes to its own rows."""
        total = sum(form.shape[axis] for form in forms)
        if any(form.axis not in (None, axis) for form in forms):
            forms = [_in_space(form) for form in forms]
        shape = tuple(total if k == axis else n for k, n in enumerate(forms[0].shape))
        parts, start = [], 0
        for form in forms:
            width = form.shape[axis]
            if _is_spatial(form, axis):
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
            form = _in_space(form)
        if _is_spatial(form, axis):
            op = _crop(index, form.shape, axis)
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
            not isinstance(m, Map) or _reads(m.geometry, atom.shape, axis - 2, index)
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
            self._known[key] = self._priced(form) if priced else _alone(Cut(form, priced))
        self.cuts[id(form)] = priced and self.cuts.get(id(form), True)
        return self._known[key]

    def _priced(self, form: Form) -> Form:
        """Name a value but for the scale and shift of its channels, which go on to its readers."""
        plain, factor, shift = _normalised(form)
        named = plain if plain.atom is not None else _alone(Cut(plain, priced=True))
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


def _source(form: Form) -> tuple[Form, Moves]:
    """The value that others are moves of, as far back as they are written as one, and these."""
    atom = form.atom
    if not (isinstance(atom, Operation) and atom.kind in MOVES):
        return form, Moves.none(form.shape)
    source, before = _source(atom.args[0])
    made = before.then(atom.kind, atom.shape, dict[str, Any](atom.attributes).get("order", ()))
    return (form, Moves.none(form.shape)) if made is None else (source, made)


def _joined_pads(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any] | None:
    """Two paddings of one mode along different axes, as one."""
    dims = max(len(first["pads"]), len(second["pads"]))
    before, behind = (
        [(0, 0)] * (dims - len(each["pads"])) + [tuple(pair) for pair in each["pads"]]
        for each in (first, second)
    )
    apart = all((0, 0) in pair for pair in zip(before, behind, strict=True))
    if first["mode"] != second["mode"] or not apart:
        return None
    pads = tuple(max(pair, key=any) for pair in zip(before, behind, strict=True))
    return {**second, "pads": pads}


def _is_spatial(form: Form, axis: int) -> bool:
    """Whether an axis is one that the maps of a value, which mix channels, have offsets along."""
    return form.axis == 1 < axis and len(form.shape) in (3, 4, 5)


def _crop(index: Sequence[int], shape: tuple[int, ...], axis: int) -> AffineConv | None:
    """The operator that keeps evenly spaced positions of a spatial axis, in their order."""
    step = index[1] - index[0] if len(index) > 1 else 1
    if step < 1 or list(index) != list(range(index[0], index[-1] + 1, step)):
        return None
    dims, channels, dim = len(shape) - 2, shape[1], axis - 2
    extent = (len(index) - 1) * step - shape[axis]
    geometry = Geometry(
        channels, channels, channels,
        offsets=tuple((index[0],) if k == dim else (0,) for k in range(dims)),
        stride=tuple(step if k == dim else 1 for k in range(dims)),
        extent=tuple(extent if k == dim else -1 for k in range(dims)),
    )  # fmt: skip
    return AffineConv(geometry, torch.ones(geometry.kernel_shape))


def _in_space(form: Form) -> Form:
    """Write what keeps positions of a spatial axis as crops, which compose with convolutions."""
    if form.axis is None or form.axis < 2 or len(form.shape) not in (3, 4, 5):
        return form
    terms = []
    for atom, m in form.terms:
        kernel = None if isinstance(m, Sized) else m.value.regroup(1).kernel
        if kernel is None or form.bias is not None or not bool((kernel.sum(1) == 1).all()):
            return form
        index = kernel.argmax(1).tolist()
        op = _crop(index, atom.shape, form.axis)
        if op is None or int((kernel != 0).sum()) != len(index):
            return form
        terms.append((atom, Map.of(op)))
    return replace(form, axis=1, terms=tuple(terms))


def _within_borders(terms: dict[Atom, Map | Sized]) -> dict[Atom, Map | Sized]:
    """Read a value that is also there with a border around it from the inside of that border.

    So a 1x1 branch beside a 3x3 one over reflected borders is a map of what both see.
    """
    for bordered in list(terms):
        if not (isinstance(bordered, Operation) and bordered.kind == "pad"):
            continue
        inner = bordered.args[0].atom
        m = None if inner is None else terms.get(inner)
        if inner is None or m is None:
            continue
        pads = dict[str, Any](bordered.attributes)["pads"]
        missing = len(inner.shape) - 2 - len(pads)
        crop = zero_pad(inner.shape[1], [(0, 0)] * missing + [(-a, -b) for a, b in pads])
        try:
            seen = _as_map(m, inner.shape[1]) @ Map.of(crop)
            total = _sum(terms[bordered], seen, inner.shape[1])
        except InexactError:
            continue
        if total is not None:
            terms = {atom: total if atom is bordered else each for atom, each in terms.items()}
            del terms[inner]
    return terms


def _reads(geometry: Geometry, shape: tuple[int, ...], dim: int, index: Sequence[int]) -> bool:
    """Whether one of these output positions sees the input at all."""
    if not geometry.dims:
        return True
    step, size = geometry.stride[dim], shape[dim + 2]
    return any(0 <= step * at + tap < size for at in index for tap in geometry.offsets[dim])


def _is_pointwise(operation: Operation) -> bool:
    same = all(arg.shape == operation.shape for arg in operation.args)
    return operation.kind in POINTWISE and same


def _keeps_rows(operation: Operation, shape: tuple[int, ...]) -> bool:
    """Whether an operation acts on the last axis alone, and a reshape leaves that one be."""
    last = len(operation.shape) - 1
    settings = dict[str, Any](operation.attributes)
    alone = settings.get("axes") == (last,) or settings.get("axis") == last
    known = operation.kind in ("layer_norm", "softmax")
    return known and alone and bool(shape) and shape[-1] == operation.shape[-1]


def kept_axis(before: tuple[int, ...], axis: int, after: tuple[int, ...]) -> int | None:
    """Where an axis is after a reshape, if it is still one."""
    ahead = math.prod(before[:axis])
    for position, size in enumerate(after):
        if size == before[axis] and math.prod(after[:position]) == ahead:
            return position
    return None


def _mixes_channels(form: Form) -> bool:
    """Whether its maps do no more than that, at each position by itself."""
    return all(isinstance(m, Sized) or m.geometry.is_pointwise for _, m in form.terms)


def _joined(before: tuple[int, ...], axis: int, after: tuple[int, ...]) -> tuple[int, slice] | None:
    """Which axis a reshape joins an axis into with others, and which those are, side by side."""
    start = 0
    while start <= axis:
        ahead, stop = math.prod(before[:start]), axis + 1
        while stop <= len(before):
            size = math.prod(before[start:stop])
            for place, n in enumerate(after):
                if n == size and math.prod(after[:place]) == ahead:
                    return place, slice(start, stop)
            stop += 1
        start += 1
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


def _sum(left: Map | Sized, right: Map | Sized, channels: int | None) -> Map | Sized | None:
    if isinstance(left, Sized) and isinstance(right, Sized):
        return left + right
    assert channels is not None  # noqa: S101 (one of the two is a map, so there is an axis)
    try:
        return _as_map(left, channels) + _as_map(right, channels)
    except InexactError:
        return None


def _is_cheap(total: Form, cut: Cut, m: Map | Sized) -> bool:
    """Whether a sum has a map of each atom of a value, so that the value costs no more with it."""
    present = dict(total.terms)
    axis = total.axis
    if axis is None or cut.form.axis not in (None, axis):
        return False
    before = after_it = 0
    try:
        outer = _as_map(m, total.shape[axis]).geometry
        for atom, n in cut.form.terms:
            if atom not in present:
                return False
            inner = _as_map(n, cut.shape[axis]).geometry
            known = _as_map(present[atom], total.shape[axis]).geometry
            dims = max(outer.dims, inner.dims, known.dims)
            both = parallel(after(outer, inner).in_dims(dims), known.in_dims(dims))
            before += inner.weights + known.weights
            after_it += both.weights
    except InexactError:
        return False
    return after_it <= before + outer.weights


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
    scales = _scales([m for _, m in terms])
    plain = tuple((atom, m.by_rows(1 / scales)) for atom, m in terms)
    if len(plain) == 1 and _is_identity(plain[0][1]):
        kept: Form = _alone(plain[0][0])
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
