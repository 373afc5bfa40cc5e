"""What operators are made of in normal form, for the table of ATen to speak in: arithmetic, layers.

A value is a :class:`Form`, or a tensor or number that does not depend on the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import Geometry
from reparam.diffing.shaping import Shaping, Value
from reparam.diffing.values import Form


class Vocabulary(Shaping):
    """The operations that the table speaks in."""

    def pointwise(self, kind: str, x: Value, **attributes: Any) -> Value:
        """An operation on every element by itself."""
        value = self.form(x)
        return self.build.operation(kind, [value], value.shape, **attributes)

    # ------------------------------------------------------------------ arithmetic

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
        numbers = self.stored.sized(number)
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

    # ------------------------------------------------------------------ layers

    def matmul(self, x: Value, y: Value) -> Value:
        """A matrix product; a linear map where one side is a constant matrix."""
        if isinstance(x, Form) and isinstance(y, Tensor):
            alike = _one_matrix(y, x.shape[:-2])
            if alike is not None:
                geometry = Geometry.pointwise(*alike.shape, dims=0)
                return self.build.layer(x, self.stored.map(geometry, alike.T, y), len(x.shape) - 1)
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return x @ y
        left, right = self.form(x), self.form(y)
        batch = tuple(torch.broadcast_shapes(left.shape[:-2], right.shape[:-2]))
        # Some runtimes lay all batches out along one axis, so here all do.
        first, second = (
            self.laid_out(self.spread(side, (*batch, *side.shape[-2:])), (-1, *side.shape[-2:]))
            for side in (left, right)
        )
        shape = (math.prod(batch), left.shape[-2], right.shape[-1])
        product = self._product("matmul", first, second, shape)
        return self.reshape(product, (*batch, *shape[1:]))

    def clip(self, x: Value, low: float, high: float) -> Value:
        """``min(max(x, low), high)``."""
        return self.pointwise("clip", x, low=float(low), high=float(high))


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


_PRODUCTS = (1, 2, 3)

_EVERY = -1
"""More than one axis: no factor for each channel."""


def _only_axis(number: Tensor, shape: Sequence[int]) -> int | None:
    """The axis along which numbers vary; None where there is one number; or ``_EVERY``."""
    long = [k for k, n in enumerate(number.shape) if n != 1]
    if not long:
        return None
    return len(shape) - number.dim() + long[0] if len(long) == 1 else _EVERY
