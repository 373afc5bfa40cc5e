"""Operations that move, join, part and average values, on a builder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import zero_pad
from reparam.diffing.layouts import Layouts, kept_axis
from reparam.diffing.notes import Stored
from reparam.diffing.values import Form, Map, Sized
from reparam.errors import UnsupportedModelError

Value = Form | Tensor | float | int
Pads = Sequence[tuple[int, int]]


class Shaping:
    """The operations that say where elements are, and values that are made and counted.

    Attributes:
        build: Makes the values.
        stored: What is known of numbers.
        shape: That of the result of the operator that is read.

    """

    def __init__(self) -> None:
        self.build = Layouts()
        self.stored = Stored()
        self.shape: tuple[int, ...] = ()
        self._shaped: dict[int, tuple[Form, Form]] = {}
        self._turned: dict[int, tuple[Form, tuple[int, ...], Form]] = {}
        self._stacked: dict[int, tuple[Form, int, list[Form]]] = {}
        self._sliced: dict[int, tuple[Form, int, list[int], Form]] = {}

    @property
    def at(self) -> str:
        """Where the network is that is read: the name of what it makes is of."""
        return self.build.at

    def form(self, value: Value) -> Form:
        """A value as a form, constants too."""
        if isinstance(value, Form):
            return value
        return self.build.constant(self.stored.sized(torch.as_tensor(value).to(torch.float64)))

    def scaled(self, x: Form, factor: float, shift: float) -> Form:
        """``factor * x + shift``."""
        numbers = None if factor == 1 else Sized.of(factor)
        return self.build.affine(x, numbers, Sized.of(shift) if shift else None, None)

    def spread(self, x: Form, shape: Sequence[int]) -> Form:
        """Repeat along axes of size one, and along new ones in front."""
        wanted = tuple(shape)
        if len(x.shape) < len(wanted):
            x = self.laid_out(x, (*(1,) * (len(wanted) - len(x.shape)), *x.shape))
        if x.shape == wanted:
            return x
        axis = None if x.axis is None or x.shape[x.axis] != wanted[x.axis] else x.axis
        return self.build.layout("expand", x, wanted, axis=axis, to=wanted)

    def permute(self, x: Value, order: Sequence[int]) -> Value:
        """Reorder the axes."""
        if not isinstance(x, Form):
            return torch.as_tensor(x).permute(*order)
        at = tuple(axis % len(x.shape) for axis in order)
        if id(x) in self._turned:
            x, first, _ = self._turned[id(x)]
            at = tuple(first[axis] for axis in at)
        return self._permuted(x, at)

    def _permuted(self, x: Form, at: tuple[int, ...]) -> Form:
        if at == tuple(range(len(at))):
            return x
        shape = tuple(x.shape[axis] for axis in at)
        long = [axis for axis in at if x.shape[axis] != 1]
        if long == sorted(long):  # nothing moves but axes of one element
            return self.laid_out(x, shape)
        axis = None if x.axis is None else at.index(x.axis)
        made = self.build.layout("permute", x, shape, axis=axis, order=at)
        self._turned[id(made)] = (x, at, made)
        return made

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Lay the elements out in another shape, of which one size may be -1."""
        if not isinstance(x, Form):
            return torch.as_tensor(x).reshape(*shape)
        return self.laid_out(x, shape)

    def laid_out(self, x: Form, shape: Sequence[int]) -> Form:
        """The same of a form."""
        sizes = list(shape)
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = math.prod(x.shape) // max(known, 1)
        if tuple(sizes) == x.shape:
            return x
        if self.whole(x).shape == tuple(sizes):
            return self.whole(x)
        axis = None if x.axis is None else kept_axis(x.shape, x.axis, tuple(sizes))
        made = self.build.layout("reshape", x, sizes, axis=axis, to=tuple(sizes))
        self._shaped[id(made)] = (x, made)
        return made

    def whole(self, x: Form) -> Form:
        """What a value was before it was laid out in another shape, if it was."""
        return self._shaped.get(id(x), (x, x))[0]

    def mean(self, x: Form, axes: Sequence[int], *, keep: bool) -> Form:
        """The mean over axes."""
        at = tuple(sorted(axis % len(x.shape) for axis in axes))
        shape = [1 if k in at else n for k, n in enumerate(x.shape)]
        long = tuple(k for k in at if x.shape[k] != 1)
        axis = None if x.axis is None or x.axis in long else x.axis
        value = x
        _, stacked_at, parts = self._stacked.get(id(x), (x, None, [x]))
        if long == (stacked_at,):  # a sum of the parts
            value = self.scaled(self.build.add(parts, tuple(shape)), 1 / len(parts), 0.0)
        elif long:
            value = self.build.layout("mean", x, shape, axis=axis, axes=long, keep=True)
        if keep:
            return value
        left = [n for k, n in enumerate(x.shape) if k not in at]
        return self.laid_out(value, left)

    def take(self, x: Form, axis: int, index: Sequence[int]) -> Form:
        """Keep positions of an axis."""
        at = axis % len(x.shape)
        made = self.build.take(x, at, list(index))
        self._sliced[id(made)] = (x, at, list(index), made)
        return made

    def slice(
        self, x: Form, axis: int = 0, start: int | None = None, stop: int | None = None,
        step: int = 1,
    ) -> Form:  # fmt: skip
        """``x[start:stop:step]`` along an axis."""
        size = x.shape[axis]
        return self.take(x, axis, range(size)[slice(start, stop, step)])

    def gather(self, x: Form, axis: int, table: Tensor) -> Form:
        """Read positions of an axis in the order of a table, whose shape takes the axis's place."""
        at = axis % len(x.shape)
        size = x.shape[at]
        order = [int(k) % size for k in table.flatten()]
        shape = (*x.shape[:at], *table.shape, *x.shape[at + 1 :])
        if order == list(range(size)):
            value = x
        elif table.dim() < 2:
            value = self.take(x, at, order)
        else:
            flat = (*x.shape[:at], len(order), *x.shape[at + 1 :])
            value = self.build.operation("gather", [x], flat, axis=at, order=order)
        return self.laid_out(value, shape)

    def cat(self, parts: Sequence[Value], axis: int = 0) -> Value:
        """Join along an axis."""
        if not any(isinstance(part, Form) for part in parts):
            return torch.cat([torch.as_tensor(part) for part in parts], axis)
        forms = [self.form(part) for part in parts]
        at = axis % len(forms[0].shape)
        joined = self._rejoined(forms, at) or self.build.cat(forms, at)
        if all(form.shape[at] == 1 for form in forms):
            self._stacked[id(joined)] = joined, at, forms
        return joined

    def _rejoined(self, forms: Sequence[Form], axis: int) -> Form | None:
        """Parts of one value that are joined to the value itself, or to it with a border."""
        known = [self._sliced.get(id(form)) for form in forms]
        whole = next((each[0] for each in known if each is not None), None)
        if whole is None:
            return None
        order: list[int] = []
        for form, each in zip(forms, known, strict=True):
            if form is not whole and (each is None or each[0] is not whole or each[1] != axis):
                return None
            order += range(whole.shape[axis]) if each is None or form is whole else each[2]
        size = whole.shape[axis]
        if order == list(range(size)):
            return whole
        start = next((k for k in range(len(order)) if order[k : k + size] == [*range(size)]), None)
        if start is None or axis < 2:
            return None
        pads = (start, len(order) - size - start)
        line = torch.arange(size, dtype=torch.float64).reshape(1, 1, size)
        for mode in ("circular", "reflect", "replicate"):
            if max(pads) < size and F.pad(line, pads, mode).flatten().tolist() == order:
                around = [pads, *[(0, 0)] * (len(whole.shape) - 1 - axis)]
                return self.pad(whole, around, mode, 0.0)
        return None

    def pad(self, x: Form, pads: Pads, mode: str, value: float) -> Form:
        """Pad the last axes; ``pads`` are (before, after), first axis first."""
        if not any(any(pair) for pair in pads):
            return x
        while not any(pads[0]):
            pads = pads[1:]
        kept = len(x.shape) - len(pads)
        shape = (
            *x.shape[:kept],
            *(n + low + high for n, (low, high) in zip(x.shape[kept:], pads, strict=True)),
        )
        if mode != "constant":
            axis = x.axis if x.axis is None or x.axis < kept else None
            return self.build.layout("pad", x, shape, axis=axis, pads=pads, mode=mode)
        if not math.isfinite(value) or kept < 2 or len(x.shape) not in (3, 4, 5):
            return self.build.operation("pad", [x], shape, pads=pads, mode=mode, value=float(value))
        pads = [*[(0, 0)] * (kept - 2), *pads]
        op = Map.of(zero_pad(x.shape[1], [(low, high) for low, high in pads]))
        inner = x if value == 0 else self.scaled(x, 1.0, -value)
        padded = self.build.layer(inner, op, 1)
        return padded if value == 0 else self.scaled(padded, 1.0, value)

    def overwrite(
        self, x: Value, by: Value, axis: int = 0, start: int | None = None,
        stop: int | None = None, step: int = 1,
    ) -> Value:  # fmt: skip
        """``x`` with ``x[start:stop:step]`` along an axis replaced."""
        whole = self.form(x)
        place = axis % len(whole.shape)
        if id(whole) in self._turned:  # written to before its axes are reordered
            inner, order, _ = self._turned[id(whole)]
            back = sorted(range(len(order)), key=order.__getitem__)
            by = self.permute(by, back)
            made = self.overwrite(inner, by, order[place], start, stop, step)
            return self.permute(made, order)
        index = range(whole.shape[place])[slice(start, stop, step)]
        if len(index) == whole.shape[place]:
            return by
        if not isinstance(by, Form) and place > 1:
            written = self.build.written(whole, torch.as_tensor(by), place, index)
            if written is not None:
                return written
        if step != 1:
            raise UnsupportedModelError(f"writing every {step}th position at {self.at}")
        parts = [
            self.slice(whole, place, 0, index.start, 1) if index.start else None,
            by,
            self.slice(whole, place, index.stop, None, 1)
            if index.stop < whole.shape[place]
            else None,
        ]
        return self.cat([part for part in parts if part is not None], place)
