"""Sizes of values that hold for every input, and what they say of an operation that keeps order."""

from __future__ import annotations

import math
from collections.abc import Iterable

Shape = tuple[int | str | None, ...]
"""Sizes per dimension: a number, a name for one that varies, or None where nothing is known."""


def channel_axis_after(before: Shape, after: Shape, axis: int) -> int | None:
    """Find the channel axis, from the end, behind an operation that keeps the order of elements.

    The axis is unharmed where the elements before it, and so those behind it, are as many as they
    were, and its own size is what it was.
    """
    position = axis + len(before)
    channels = before[position]
    if not isinstance(channels, int):
        return None
    for candidate, size in enumerate(after):
        if size != channels:
            continue
        if same_size(before[:position], after[:candidate]) or same_size(
            before[position + 1 :], after[candidate + 1 :]
        ):
            return candidate - len(after)
    return None


def same_size(first: Iterable[int | str | None], second: Iterable[int | str | None]) -> bool:
    """Whether two products of sizes are known to be the same."""
    left, right = _product(first), _product(second)
    return left is not None and left == right


def _product(sizes: Iterable[int | str | None]) -> tuple[int, tuple[str, ...]] | None:
    """Multiply sizes: the number, and the names that it is to be multiplied with."""
    known = list(sizes)
    if None in known:
        return None
    names = tuple(sorted(size for size in known if isinstance(size, str)))
    return math.prod(size for size in known if isinstance(size, int)), names
