"""What patches as shifted images depend on besides the numbers: sizes, taps and strides alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LAGS = 3
"""Columns of lags in one native call: of all widths, CPUs are fast at this one alone."""


def lag_windows(shifts: int, *, both: bool) -> int:
    """How many native calls the lags of so many columns take, to both sides or from zero on."""
    return -(-(2 * shifts - 1 if both else shifts) // LAGS)


class Axis(NamedTuple):
    """One dimension: sizes of the image and the output, first and last tap, and the stride."""

    size: int
    out: int
    first: int
    last: int
    step: int

    @property
    def taps(self) -> int:
        """How many there are."""
        return self.last - self.first + 1

    @property
    def shifts(self) -> int:
        """By how many different shifts of a phase they read."""
        return self.last // self.step - self.first // self.step + 1

    @property
    def phase(self) -> int:
        """Size of the largest phase."""
        return -(-self.size // self.step)

    @property
    def meeting(self) -> tuple[int, int]:
        """The first position whose patch meets the image, and one behind the last."""
        return -(self.last // self.step), (self.size - 1 - self.first) // self.step + 1

    def sides(self) -> list[tuple[int, int]]:
        """The ranges of positions that are not computed though their patches meet the image."""
        low, high = self.meeting
        return [(a, b) for a, b in ((low, min(0, high)), (self.out, high)) if a < b]

    def reads(self) -> Tensor:
        """For each tap the places that it reads: ``(taps, size)``."""
        ahead = torch.arange(self.size) - torch.arange(self.first, self.last + 1)[:, None]
        position = ahead.div(self.step, rounding_mode="floor")
        return (ahead % self.step == 0) & (position >= 0) & (position < self.out)

    def reads_with(self) -> Tensor:
        """For taps ``t, t'`` what ``t`` reads while ``t'`` reads the image, too."""
        tap = torch.arange(self.first, self.last + 1)
        other = torch.arange(self.size) - tap[:, None, None] + tap[:, None]
        return self.reads()[:, None] & (other >= 0) & (other < self.size)


class Span(NamedTuple):
    """Positions of an axis from ``low`` to before ``high``, and taps that meet the image there."""

    low: int
    high: int
    first: int
    last: int

    @classmethod
    def of(cls, axis: Axis, positions: tuple[int, int]) -> Span:
        """Positions of an axis, with the taps that meet the image at one of them."""
        low, high = positions
        first = max(axis.first, -axis.step * (high - 1))
        return cls(low, high, first, min(axis.last, axis.size - 1 - axis.step * low))

    @property
    def positions(self) -> int:
        """How many positions there are."""
        return self.high - self.low

    @property
    def taps(self) -> int:
        """How many there are."""
        return self.last - self.first + 1

    def places(self, axis: Axis) -> tuple[int, int]:
        """The first place that is read, and one behind the last; both may be outside."""
        start = axis.step * self.low + self.first
        return start, axis.step * (self.high - 1) + self.last + 1


@dataclass(frozen=True)
class Back:
    """The convolution that gives one phase of the gradient of the image.

    Attributes:
        phase: Which, for each axis.
        kernel: From a map of the patches to its kernel, ``(taps * taps, numbers)``.
        size: Of that kernel.
        padding: Zeros before and behind the image.
        taps: Which taps read this phase, ``(taps,)``.

    """

    phase: tuple[int, int]
    kernel: Tensor
    size: tuple[int, ...]
    padding: tuple[int, ...]
    taps: Tensor


@dataclass(frozen=True)
class Maps:
    """What depends on sizes alone.

    Attributes:
        phases: The phases that taps read.
        products: Where among correlations of pairs of phases each product of taps is.
        back: How each phase of the gradient is made.
        strips: Positions that are not computed, as rows and columns.
        reads: For each axis the places that a tap reads, ``(taps, size)``.
        inside: For each axis those that ``t`` reads while ``t'`` reads the image,
            ``(taps * taps, size)``.
        present: How often two taps both read the image, as a share, ``(taps, taps)``.

    """

    phases: list[tuple[int, int]]
    products: Tensor
    back: list[Back]
    strips: list[tuple[Span, Span]]
    reads: tuple[Tensor, Tensor]
    inside: tuple[Tensor, Tensor]
    present: Tensor


@functools.lru_cache(maxsize=256)
def maps_of(rows: Axis, columns: Axis, device: torch.device, dtype: torch.dtype) -> Maps:
    """Make what two axes need, once for all steps."""
    axes = (rows, columns)
    phases = sorted({(t % rows.step, s % columns.step) for t, s in _taps(axes)})
    inside = rows.reads_with(), columns.reads_with()
    shares = (m.sum(2).double() / max(a.out, 1) for m, a in zip(inside, axes, strict=True))
    every = [(axis.meeting, axis.sides(), (0, axis.out)) for axis in axes]
    strips = [(side, every[1][0]) for side in every[0][1]]
    strips += [(every[0][2], side) for side in every[1][1]]

    def there(numbers: Tensor) -> Tensor:
        return numbers.to(device, dtype)

    return Maps(
        phases,
        torch.tensor(_products(axes, phases), device=device),
        [_back(axes, phase, there) for phase in phases],
        [(Span.of(rows, r), Span.of(columns, c)) for r, c in strips],
        (there(rows.reads()), there(columns.reads())),
        (there(inside[0].flatten(0, 1)), there(inside[1].flatten(0, 1))),
        there(torch.kron(*shares)),
    )  # fmt: skip


def _taps(axes: tuple[Axis, Axis]) -> list[tuple[int, int]]:
    first, second = (range(axis.first, axis.last + 1) for axis in axes)
    return list(itertools.product(first, second))


def _products(axes: tuple[Axis, Axis], phases: list[tuple[int, int]]) -> list[int]:
    """Where the product of each two taps is among the correlations of all pairs of phases."""
    rows, columns = axes
    both = len(phases) > 1
    pairs = list(itertools.combinations_with_replacement(phases, 2))
    wide = lag_windows(columns.shifts, both=both) * LAGS
    start = 1 - columns.shifts if both else 0
    found = []
    for (t, s), (u, v) in itertools.product(_taps(axes), repeat=2):
        pair = (t % rows.step, s % columns.step), (u % rows.step, v % columns.step)
        down, right = u // rows.step - t // rows.step, v // columns.step - s // columns.step
        if pair not in pairs or (not both and right < 0):
            pair, down, right = (pair[1], pair[0]), -down, -right
        at = pairs.index(pair) * (2 * rows.shifts - 1) + down + rows.shifts - 1
        found.append(at * wide + right - start)
    return found


def _back(
    axes: tuple[Axis, Axis], phase: tuple[int, int], there: Callable[[Tensor], Tensor]
) -> Back:
    """How a map of the patches acts on one phase of the gradient: ``u - t`` for its taps ``t``."""
    taps = _taps(axes)
    own = [all(t % a.step == r for t, a, r in zip(tap, axes, phase, strict=True)) for tap in taps]
    ranges = []
    for axis, r in zip(axes, phase, strict=True):
        mine = [t for t in range(axis.first, axis.last + 1) if t % axis.step == r]
        low, high = axis.first - mine[-1], axis.last - mine[0]
        # As many zeros before the image as behind it, and as many results as there are places.
        padding = max(0, -(r + low))
        wanted = max(0, axis.step * (-(-(axis.size - r) // axis.step) - 1))
        while True:
            start = -padding - r  # the first lag of the kernel, which begins at the first zero
            length = max(high, start) - start + 1
            if axis.size + 2 * padding - length >= wanted:
                break
            padding += 1
        ranges.append((start, length, padding))
    kernel = torch.zeros(len(taps), len(taps), *(length for _, length, _ in ranges))
    for (i, t), (j, u) in itertools.product(enumerate(taps), repeat=2):
        if own[i]:
            at = (b - a - start for a, b, (start, *_) in zip(t, u, ranges, strict=True))
            kernel[(i, j, *at)] = 1
    return Back(
        phase, there(kernel.view(len(taps) ** 2, -1)), tuple(length for _, length, _ in ranges),
        tuple(padding for *_, padding in ranges), there(torch.tensor(own)),
    )  # fmt: skip
