"""Operations that move the elements of a value, or average them, in normal form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from reparam.diffing.kinds import KINDS, POINTWISE
from reparam.diffing.moves import MOVES, Moves
from reparam.diffing.normal import Builder, alone, normalised
from reparam.diffing.values import Constant, Form, Operation, Sized


class Layouts(Builder):
    """Makes those values, too."""

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
        plain, factor, shift = normalised(form)
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
        constant = alone(Constant(field, shape, self.at))
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

        plain, factor, shift = normalised(form)
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
            moved = self._moved(kind, alone(atom), tuple(size), given)
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
