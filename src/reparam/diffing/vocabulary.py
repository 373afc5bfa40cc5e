"""What the operators of any format mean in normal form; front ends only translate their arguments.

A value is a :class:`Form`, or a tensor or number that does not depend on the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from reparam.algebra import Geometry, zero_pad
from reparam.diffing.kinds import KINDS
from reparam.diffing.normal import Builder, kept_axis
from reparam.diffing.values import Form, Map, Sized
from reparam.errors import InexactError, UnsupportedModelError

__all__ = ["Value", "Vocabulary"]

Value = Form | Tensor | float | int
Pads = Sequence[tuple[int, int]]


class Vocabulary:
    """The operations that front ends speak in, on a builder."""

    def __init__(self) -> None:
        """Prepare to read a network."""
        self.build = Builder()
        self.shape: tuple[int, ...] = ()
        self._named: dict[tuple[int, int], bool] = {}
        self._births: dict[int, tuple[tuple[int, int], Form]] = {}  # with what the ids stand for
        self._strays = WeakTensorKeyDictionary()
        self._shaped: dict[int, tuple[Form, Form]] = {}
        self._turned: dict[int, tuple[Form, tuple[int, ...], Form]] = {}
        self._stacked: dict[int, tuple[Form, int, list[Form]]] = {}
        self._sliced: dict[int, tuple[Form, int, list[int], Form]] = {}

    def rounded(self, exact: Any, run: Any) -> None:
        """Note numbers that the network computes itself, and what it makes of them as it runs."""
        if isinstance(exact, Tensor) and exact.dtype is torch.float64:
            self._strays[exact] = run

    def sized(self, numbers: Tensor) -> Sized:
        """Take numbers; the worst rounding of a network that computes them is in their size."""
        value = numbers.to(torch.float64)
        stray = self._stray(numbers)
        return Sized(value, None if stray is None else value.abs() + stray)

    def map(self, geometry: Geometry, numbers: Tensor, source: Tensor | None = None) -> Map:
        """Take the numbers of a linear operator, laid out anew from those of a ``source``."""
        stray = self._stray(numbers if source is None else source)
        own = None if stray is None else numbers.to(torch.float64).abs() + stray
        return Map(geometry, numbers, None, own)

    def _stray(self, numbers: Tensor) -> float | None:
        """How much larger rounding makes the size of numbers that a network computes."""
        run = self._strays.get(numbers)
        if run is None or not numbers.numel():
            return None
        worst = float((numbers - run).abs().max())
        return worst / torch.finfo(torch.float32).eps if worst != 0 else None

    def noted(self, step: int, values: Sequence[Any]) -> list[Any]:
        """Take what a step computes; of that what a later one cuts is cut for all who read it."""
        return [self._noted((step, place), each) for place, each in enumerate(values)]

    def _noted(self, birth: tuple[int, int], value: Any) -> Any:
        if not isinstance(value, Form):
            return value
        self._births.setdefault(id(value), (birth, value))
        if birth not in self._named:
            return value
        named = self.build.cut(value, priced=self._named[birth])
        self._births.setdefault(id(named), (birth, named))
        return named

    def resumed(self, step: int) -> int:
        """Say where to go on behind a step: at the next, or where a value is made that it cuts.

        A value that is cut for one reader has to be for all: else a sum of what two of them make of
        it would be written by other atoms than where one layer stands for both.
        """
        births = []
        for each, priced in self.build.cuts.items():
            birth, _ = self._births.get(each, (None, None))
            if birth is not None and self._named.get(birth, _NOT_YET) > priced:
                self._named[birth] = priced
                births.append(birth)
        self.build.cuts.clear()
        return min(births)[0] if births else step + 1

    @property
    def at(self) -> str:
        """Where the network is that is read: the name of what it makes is of."""
        return self.build.at

    def translated(
        self, handler: Callable[..., Any], name: str, at: str, shape: Sequence[int] | None,
        args: Any, kwargs: Any,
    ) -> Any:  # fmt: skip
        """Call what a front end knows of an operator; its arguments may be of a kind it does not.

        Raises:
            UnsupportedModelError: They are.

        """
        self.build.at, self.shape = at, () if shape is None else tuple(shape)
        try:
            return handler(self, *args, **kwargs)
        except UnsupportedModelError:
            raise
        except _STRANGE as error:
            raise UnsupportedModelError(
                f"{name} at {self.at} has no normal form as it is used there: {error}"
            ) from error

    def form(self, value: Value) -> Form:
        """A value as a form, constants too."""
        if isinstance(value, Form):
            return value
        return self.build.constant(self.sized(torch.as_tensor(value).to(torch.float64)))

    def pointwise(self, kind: str, x: Value, **attributes: Any) -> Value:
        """An operation on every element by itself."""
        if not isinstance(x, Form):
            return KINDS[kind](torch.as_tensor(x, dtype=torch.float64), **attributes)
        return self.build.operation(kind, [x], x.shape, **attributes)

    # ------------------------------------------------------------------ arithmetic

    def scaled(self, x: Form, factor: float, shift: float) -> Form:
        """``factor * x + shift``."""
        numbers = None if factor == 1 else Sized.of(factor)
        return self.build.affine(x, numbers, Sized.of(shift) if shift else None, None)

    def add(self, x: Value, y: Value, alpha: float = 1.0) -> Value:
        """``x + alpha * y``."""
        if isinstance(y, Form):
            y = y if alpha == 1 else self.scaled(y, alpha, 0.0)
            if not isinstance(x, Form):
                return self.add(y, x)
        elif not isinstance(x, Form):
            return torch.as_tensor(x) + alpha * torch.as_tensor(y)
        else:
            constant = torch.as_tensor(y, dtype=torch.float64)
            constant = constant if alpha == 1 else alpha * constant
            return self._with_constant(x, None, constant)
        shape = _common(x.shape, y.shape)
        return self.build.add([self.spread(x, shape), self.spread(y, shape)], shape)

    def mul(self, x: Value, y: Value) -> Value:
        """``x * y``."""
        if isinstance(x, Form) and isinstance(y, Form):
            return self._product("mul", x, y, _common(x.shape, y.shape))
        if isinstance(x, Form):
            return self._with_constant(x, torch.as_tensor(y, dtype=torch.float64), None)
        if isinstance(y, Form):
            return self.mul(y, x)
        return torch.as_tensor(x) * torch.as_tensor(y)

    def _product(self, kind: str, x: Form, y: Form, shape: Sequence[int]) -> Form:
        """A product of two values; one number that either is multiplied by stands behind it."""
        (left, first), (right, second) = self.build.unscaled(x), self.build.unscaled(y)
        value = self.build.operation(kind, [left, right], shape)
        factor = first * second
        return value if factor == 1 else self.scaled(value, factor, 0.0)

    def power(self, x: Value, exponent: float) -> Value:
        """``x ** exponent``; small whole powers are products, as some exporters write them."""
        if exponent in _PRODUCTS:
            value = x
            for _ in range(int(exponent) - 1):
                value = self.mul(value, x)
            return value
        return self.pointwise("pow", x, exponent=float(exponent))

    def div(self, x: Value, y: Value) -> Value:
        """``x / y``."""
        if not isinstance(y, Form):
            return self.mul(x, 1 / torch.as_tensor(y, dtype=torch.float64))
        return self.mul(x, self.power(y, -1.0))

    def _with_constant(self, x: Form, factor: Tensor | None, shift: Tensor | None) -> Value:
        number = shift if factor is None else factor
        assert number is not None  # noqa: S101 (one of the two is given)
        numbers = self.sized(number)
        shape = _common(x.shape, tuple(number.shape))
        axis = _only_axis(number, shape)
        if tuple(shape) != x.shape or axis == _EVERY:
            x = self.spread(x, shape)
        if axis == _EVERY and factor is None and self.build.varying(x, number):
            field = numbers.each(lambda each: each.expand(shape)[0])
            return self.build.affine(x, None, field, 1)
        if axis == _EVERY:
            other = self.build.constant(numbers)
            if factor is None:
                return self.build.add([x, self.spread(other, shape)], tuple(shape))
            return self._product("mul", x, other, shape)
        flat = numbers.each(lambda each: each.reshape(() if axis is None else -1))
        if factor is None:
            return self.build.affine(x, None, flat, axis)
        return self.build.affine(x, flat, None, axis)

    def spread(self, x: Form, shape: Sequence[int]) -> Form:
        """Repeat along axes of size one, and along new ones in front."""
        wanted = tuple(shape)
        if len(x.shape) < len(wanted):
            x = self._laid_out(x, (*(1,) * (len(wanted) - len(x.shape)), *x.shape))
        if x.shape == wanted:
            return x
        axis = None if x.axis is None or x.shape[x.axis] != wanted[x.axis] else x.axis
        return self.build.layout("expand", x, wanted, axis=axis, to=wanted)

    # ------------------------------------------------------------------ layers

    def linear(self, x: Value, weight: Value, bias: Value | None) -> Value:
        """``x @ weight.T + bias`` along the last axis."""
        if isinstance(x, Form) and isinstance(weight, Tensor) and not isinstance(bias, Form):
            return self._linear(x, weight, bias)
        turned = self.permute(weight, (1, 0))
        product = self.matmul(x, turned)
        return product if bias is None else self.add(product, bias)

    def _linear(
        self, x: Form, weight: Tensor, bias: Tensor | float | None, source: Tensor | None = None
    ) -> Form:
        geometry = Geometry.pointwise(weight.shape[1], weight.shape[0], dims=0)
        shift = None if bias is None else torch.as_tensor(bias).expand(len(weight))
        return self.build.layer(x, self.map(geometry, weight, source), len(x.shape) - 1, shift)

    def matmul(self, x: Value, y: Value) -> Value:
        """A matrix product; a linear map where one side is a constant matrix."""
        if isinstance(x, Form) and isinstance(y, Tensor):
            alike = _one_matrix(y, x.shape[:-2])
            if alike is not None:
                return self._linear(x, alike.T, None, y)
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return x @ y
        left, right = self.form(x), self.form(y)
        batch = tuple(torch.broadcast_shapes(left.shape[:-2], right.shape[:-2]))
        # Some runtimes lay all batches out along one axis, so here all do.
        first, second = (
            self._laid_out(self.spread(side, (*batch, *side.shape[-2:])), (-1, *side.shape[-2:]))
            for side in (left, right)
        )
        shape = (math.prod(batch), left.shape[-2], right.shape[-1])
        product = self._product("matmul", first, second, shape)
        return self.reshape(product, (*batch, *shape[1:]))

    def group_norm(
        self, x: Form, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float,
    ) -> Value:  # fmt: skip
        """Group normalisation; with one group for each channel, instance normalisation."""
        whole = self._shaped.get(id(x), (x, x))[0]
        rows = len(x.shape) == 3 and x.shape[1] == groups and len(whole.shape) > 2
        # Exporters write groups as the channels of another shape.
        before = whole if rows and whole.shape[0] == x.shape[0] else x
        normal = self.build.operation(
            "group_norm", [before], before.shape, groups=groups, eps=float(eps)
        )
        normal = self._laid_out(normal, x.shape)
        if weight is not None and before is not x and bool((weight == 1).all()):
            weight = None
        if bias is not None and before is not x and not bool(bias.any()):
            bias = None
        if weight is None and bias is None:
            return normal
        return self.build.affine(
            normal,
            None if weight is None else Sized.of(weight.flatten()),
            None if bias is None else Sized.of(bias.flatten()),
            1,
        )

    # ------------------------------------------------------------------ activations

    def clip(self, x: Value, low: float, high: float) -> Value:
        """``min(max(x, low), high)``."""
        return self.pointwise("clip", x, low=float(low), high=float(high))

    def relu(self, x: Value) -> Value:
        """``max(x, 0)``."""
        return self.clip(x, 0.0, math.inf)

    def hardsigmoid(self, x: Value) -> Value:
        """``clip(x / 6 + 1 / 2, 0, 1)``."""
        return self.clip(self.add(self.mul(x, 1 / 6), 0.5), 0.0, 1.0)

    def gated(self, x: Value, gate: str) -> Value:
        """``x * gate(x)``: silu by sigmoid, hardswish by hardsigmoid, gelu by the normal law."""
        match gate:
            case "hardsigmoid":
                by = self.hardsigmoid(x)
            case "normal":
                inner = self.mul(x, math.sqrt(0.5))
                half = self.mul(self.pointwise("erf", inner), 0.5)
                by = self.add(half, 0.5)
            case "normal_tanh":
                cube = self.mul(self.power(x, 3.0), 0.044715)
                inner = self.mul(self.add(x, cube), math.sqrt(2 / math.pi))
                half = self.mul(self.pointwise("tanh", inner), 0.5)
                by = self.add(half, 0.5)
            case "softplus_tanh":
                by = self.pointwise("tanh", self.pointwise("softplus", x))
            case _:
                by = self.pointwise(gate, x)
        return self.mul(x, by)

    # ------------------------------------------------------------------ layout

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
            return self._laid_out(x, shape)
        axis = None if x.axis is None else at.index(x.axis)
        made = self.build.layout("permute", x, shape, axis=axis, order=at)
        self._turned[id(made)] = (x, at, made)
        return made

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Lay the elements out in another shape, of which one size may be -1."""
        if not isinstance(x, Form):
            return torch.as_tensor(x).reshape(*shape)
        return self._laid_out(x, shape)

    def _laid_out(self, x: Form, shape: Sequence[int]) -> Form:
        sizes = list(shape)
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = math.prod(x.shape) // max(known, 1)
        if tuple(sizes) == x.shape:
            return x
        if self._shaped.get(id(x), (x, x))[0].shape == tuple(sizes):
            return self._shaped[id(x)][0]
        axis = None if x.axis is None else kept_axis(x.shape, x.axis, tuple(sizes))
        made = self.build.layout("reshape", x, sizes, axis=axis, to=tuple(sizes))
        self._shaped[id(made)] = (x, made)
        return made

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
        return self._laid_out(value, left)

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
        return self._laid_out(value, shape)

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


def _one_matrix(stack: Tensor, batch: tuple[int, ...]) -> Tensor | None:
    """The matrix that all of a batch are multiplied by, if there is one."""
    if stack.dim() < 2 or len(stack.shape) - 2 > len(batch):
        return None
    if stack.dim() == 2:
        return stack
    flat = stack.flatten(0, -3)
    fits = torch.broadcast_shapes(stack.shape[:-2], batch) == torch.Size(batch)
    return flat[0] if fits and bool((flat == flat[:1]).all()) else None


def _common(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """The shape that two values are spread to."""
    if tuple(first) == tuple(second) or not second:
        return tuple(first)
    return tuple(torch.broadcast_shapes(tuple(first), tuple(second)))


_NOT_YET = 2
"""More than False, a cut that has to be, and True, one that only pays."""

_STRANGE = (ArithmeticError, AttributeError, InexactError, LookupError, RuntimeError, TypeError,
            ValueError)  # fmt: skip
"""What arguments of another type, number or size than a rule expects lead to."""

_PRODUCTS = (1, 2, 3)

_EVERY = -1
"""More than one axis: no factor for each channel."""


def _only_axis(number: Tensor, shape: Sequence[int]) -> int | None:
    """The axis along which numbers vary; None where there is one number; or ``_EVERY``."""
    long = [k for k, n in enumerate(number.shape) if n != 1]
    if not long:
        return None
    return len(shape) - number.dim() + long[0] if len(long) == 1 else _EVERY
