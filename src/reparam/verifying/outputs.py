"""Results of models: what they hold, what they are besides their numbers, and how far apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Difference:
    """How far results are apart.

    Attributes:
        max_abs: Largest absolute difference of two floating-point numbers; NaN where one is not
            finite and the other is another; infinite where the results are of other shapes.
        unequal: How many integers and booleans are not equal.

    """

    max_abs: float = 0.0
    unequal: int = 0

    def worse(self, other: Difference) -> Difference:
        """The larger of both in each respect (NaN is the largest)."""
        largest = max(self.max_abs, other.max_abs)
        unordered = math.isnan(self.max_abs) or math.isnan(other.max_abs)
        return Difference(math.nan if unordered else largest, max(self.unequal, other.unequal))


def tensors(value: Any) -> Iterator[Tensor]:
    """All numbers of a result, in order: those in lists, dicts and attributes of objects, too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, bool | int | float) or _is_array(value):
        yield torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    else:
        for _, part in _parts(value):
            yield from tensors(part)


def structural_difference(
    expected: Any, found: Any, where: str = "the result", *, same_types: bool = False
) -> str | None:
    """Say where two results differ in anything but their numbers: types, keys, order, shapes.

    Args:
        expected: The reference's result.
        found: The candidate's.
        where: How they are reached.
        same_types: Whether numbers have to be of the same type, and not only both inexact or not.

    """
    if _is_number(expected) and _is_number(found):
        a, b = (next(tensors(value)) for value in (expected, found))
        return _different_tensors(a, b, where, same_types=same_types)
    if type(expected) is not type(found):
        kinds = (type(v).__qualname__ for v in (found, expected))
        return "{} is a {} where the reference returns a {}".format(where, *kinds)
    left, right = list(_parts(expected)), list(_parts(found))
    if [name for name, _ in left] != [name for name, _ in right]:
        names = (", ".join(str(name) for name, _ in parts) or "nothing" for parts in (right, left))
        return "{} holds {} where the reference's holds {}".format(where, *names)
    for (name, a), (_, b) in zip(left, right, strict=True):
        inner = structural_difference(a, b, f"{where}{name}", same_types=same_types)
        if inner is not None:
            return inner
    if not left and isinstance(expected, str) and expected != found:
        return f"{where} is {found!r} where the reference returns {expected!r}"
    return None


def differences(expected: Sequence[Tensor], found: Sequence[Tensor]) -> Difference:
    """How far results are apart; a NaN is equal to a NaN, an infinity to the same one."""
    if [t.shape for t in expected] != [t.shape for t in found]:
        return Difference(math.inf, sum(t.numel() for t in expected))
    worst, unequal = 0.0, 0
    for left, right in zip(expected, found, strict=True):
        if not left.numel():
            continue
        if is_inexact(left):
            value = _largest(left, right)
            worst = value if math.isnan(value) or value > worst else worst
        else:
            unequal += int((left.cpu() != right.cpu()).sum())
    return Difference(worst, unequal)


def largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest absolute difference, in float64; NaN where either has one that the other lacks."""
    worst = 0.0
    for left, right in zip(expected, found, strict=True):
        value = _largest(left, right) if left.numel() else 0.0
        worst = value if math.isnan(value) or value > worst else worst
    return worst


def nothing_to_see(expected: Sequence[Tensor], found: Sequence[Tensor]) -> str | None:
    """Why numbers show nothing: there are none, or they are not finite."""
    if not any(t.numel() for t in expected):
        shapes = ", ".join(str(tuple(t.shape)) for t in expected)
        return f"the reference returns no number (shapes: {shapes or 'none'})"
    floats = [t for t in expected if is_inexact(t) and t.numel()]
    if not floats:
        return None
    for name, values in (("reference", floats), ("candidate", [t for t in found if is_inexact(t)])):
        undefined = sum(int(numbers(t).isnan().sum()) for t in values)
        if undefined:
            total = sum(t.numel() for t in values)
            return f"the {name} returns NaN ({undefined:,} of {total:,} numbers)"
    if not any(bool(numbers(t).isfinite().any()) for t in floats):
        return "the reference returns no finite number"
    return None


def is_inexact(value: Tensor) -> bool:
    """Whether a tensor is of numbers that are rounded."""
    return value.is_floating_point() or value.is_complex() or value.is_quantized


def numbers(value: Tensor) -> Tensor:
    """The numbers of a tensor in float64, on the CPU."""
    value = value.detach()
    if value.is_quantized:
        value = value.dequantize()
    if value.layout is not torch.strided:
        value = value.to_dense()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    return value.cpu().to(torch.float64)


def _largest(left: Tensor, right: Tensor) -> float:
    a, b = numbers(left), numbers(right)
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0.0, (a - b).abs()).max())


def _different_tensors(
    expected: Tensor, found: Tensor, where: str, *, same_types: bool
) -> str | None:
    if expected.shape != found.shape:
        return (
            f"{where} has the shape {tuple(found.shape)} where the reference's has "
            f"{tuple(expected.shape)}"
        )
    kinds = [(is_inexact(t), t.is_complex(), t.dtype == torch.bool) for t in (expected, found)]
    if kinds[0] != kinds[1] or (same_types and expected.dtype != found.dtype):
        return f"{where} is of type {found.dtype} where the reference's is of {expected.dtype}"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, Tensor | bool | int | float) or _is_array(value)


def _is_array(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "__array__")


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a container holds, each part with how it is reached."""
    if isinstance(value, str | bytes | type | nn.Module):
        return
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
        # A ModelOutput has its items as attributes, too.
        items = {id(item) for item in value.values()}
        yield from (part for part in _attributes(value) if id(part[1]) not in items)
    elif isinstance(value, list | tuple):
        yield from ((f"[{k}]", item) for k, item in enumerate(value))
        yield from _attributes(value)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)
    else:
        yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from ((f".{key}", item) for key, item in getattr(value, "__dict__", {}).items())
