"""Where operations that only move elements take them from: found by moving the channels' numbers.

What such an operation does with an axis depends on its arguments and not on what it moves, so that
it is read by running it: on a tensor that holds at every place the number of its channel, at two
sets of sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_MOST = 1 << 22
"""Numbers to move at the most; larger ones are not looked at."""


class Route(NamedTuple):
    """What an operation that only moves elements does with the channels of its input.

    Attributes:
        axis: Channel axis of what it returns, from the end.
        rank: Number of dimensions of that.
        origins: For each channel that it returns those that its elements come from.
        batch: Whether each element of its first dimension comes from the same one of the input's.
        single: Axes of size one whatever the input, from the end.

    """

    axis: int
    rank: int
    origins: tuple[tuple[int, ...], ...]
    batch: bool
    single: frozenset[int]

    def is_in_place(self, channels: int) -> bool:
        """Whether channels stay channels, each with elements of its own."""
        return self.origins == tuple((c,) for c in range(channels))


def route(
    run: Callable[[Tensor], Tensor], rank: int, axis: int, channels: int,
    single: frozenset[int] = frozenset(), *, reach: int = 0,
) -> Route | None:  # fmt: skip
    """Find what an operation does with channels; None where it tears them apart.

    Args:
        run: The operation, with all of its other arguments.
        rank: Number of dimensions of its input.
        axis: Channel axis of it, from the end.
        channels: Size of that.
        single: Other axes of it that have size one whatever the input, from the end.
        reach: The largest place along an axis that the arguments name.

    """
    for more, times in dict.fromkeys(((0, 1), (reach, 1), (0, max(reach, 1)))):
        shapes = [_sizes(rank, axis, channels, single, more, step * times) for step in (1, 2)]
        if math.prod(shapes[1]) > _MOST:
            return None
        try:
            made = [run(_numbered(shape, axis)) for shape in shapes]
            if not all(isinstance(each, Tensor) and each.numel() for each in made):
                continue
            first = [] if axis == -rank else [run(_numbered(shape, -rank)) for shape in shapes]
        except Exception:  # noqa: BLE001, S112 (it may say in any way that it takes no such input)
            continue
        return _found(made, first, [shape[0] for shape in shapes])
    return None


def order_of(run: Callable[[Tensor], Tensor], rank: int) -> list[int] | None:
    """For each axis that an operation returns, the one of its input; None for no permutation."""
    sizes = range(2, 2 + rank)
    try:
        shape = run(torch.empty(*sizes, device="meta")).shape
    except Exception:  # noqa: BLE001 (as above)
        return None
    return [size - 2 for size in shape] if sorted(shape) == list(sizes) else None


def _sizes(
    rank: int, axis: int, channels: int, single: frozenset[int], more: int, step: int
) -> list[int]:
    """Sizes of axes, other ones for each step but for channels and single axes."""
    sizes = [more + (2 + at) * step for at in range(rank)]
    for at in single:
        sizes[at] = 1
    sizes[axis] = channels
    return sizes


def _numbered(sizes: list[int], axis: int) -> Tensor:
    """At every place its number along an axis."""
    shape = [1] * len(sizes)
    shape[axis] = sizes[axis]
    numbers = torch.arange(sizes[axis], dtype=torch.float64).view(shape)
    return numbers.expand(sizes).contiguous()


def _found(made: list[Tensor], first: list[Tensor], batches: list[int]) -> Route | None:
    left, right = made
    if left.dim() != right.dim():
        return None
    alike = [at for at in range(left.dim()) if left.shape[at] == right.shape[at]]
    found = {at: origins for at in alike if (origins := _origins(left, right, at)) is not None}
    apart = [at for at, origins in found.items() if all(len(one) == 1 for one in origins)]
    # Channels that are made of several have these for themselves, as where pixels are shuffled.
    parted = [at for at, origins in found.items() if _are_parted(origins)]
    several = apart or parted
    if len(several) > 1:  # an axis of size one beside that of the channels
        several = [at for at in several if left.shape[at] > 1]
    if len(several) != 1:
        return None
    at, rank = several[0], left.dim()
    batch = bool(first) and at != 0 and all(map(_is_kept, first, batches))
    single = frozenset(k - rank for k in alike if left.shape[k] == 1 and k != at)
    return Route(at - rank, rank, found[at], batch, single)


def _origins(left: Tensor, right: Tensor, at: int) -> tuple[tuple[int, ...], ...] | None:
    """The numbers along an axis, the same in both; None where those differ."""
    found = _numbers_along(left, at)
    return tuple(found) if found == _numbers_along(right, at) else None


def _numbers_along(value: Tensor, at: int) -> list[tuple[int, ...]]:
    """The different numbers that lie in each place of an axis."""
    rows = value.movedim(at, 0).flatten(1) if value.dim() > 1 else value[:, None]
    least, most = rows.aminmax(dim=1)
    if torch.equal(least, most):
        return [(int(number),) for number in least.tolist()]
    return [tuple(map(int, sorted(set(row)))) for row in rows.tolist()]


def _are_parted(origins: tuple[tuple[int, ...], ...]) -> bool:
    taken = [origin for one in origins for origin in one]
    return len(set(taken)) == len(taken)


def _is_kept(numbers: Tensor, count: int) -> bool:
    """Whether the first dimension is as long as it was, and each of its parts in its place."""
    rows = numbers.flatten(1) if numbers.dim() > 1 else numbers[:, None]
    return len(rows) == count and bool((rows == torch.arange(count)[:, None]).all())
