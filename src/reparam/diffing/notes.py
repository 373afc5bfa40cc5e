"""What is noted of a network while it is read: what rounds in it, and which values are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from reparam.algebra import Geometry
from reparam.diffing.normal import Builder
from reparam.diffing.values import Form, Map, Sized


class Stored:
    """Numbers that a network holds or computes itself, with their sizes."""

    def __init__(self) -> None:
        self._strays = WeakTensorKeyDictionary()

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


class Cuts:
    """Which values are cut, by where they are made: the same for all that read them."""

    def __init__(self, build: Builder) -> None:
        self._build = build
        self._named: dict[tuple[int, int], bool] = {}
        self._births: dict[int, tuple[tuple[int, int], Form]] = {}  # with what the ids stand for

    def noted(self, step: int, values: Sequence[Any]) -> list[Any]:
        """Take what a step computes; of that what a later one cuts is cut for all who read it."""
        return [self._noted((step, place), each) for place, each in enumerate(values)]

    def _noted(self, birth: tuple[int, int], value: Any) -> Any:
        if not isinstance(value, Form):
            return value
        self._births.setdefault(id(value), (birth, value))
        if birth not in self._named:
            return value
        named = self._build.cut(value, priced=self._named[birth])
        self._births.setdefault(id(named), (birth, named))
        return named

    def resumed(self, step: int) -> int:
        """Say where to go on behind a step: at the next, or where a value is made that it cuts.

        A value that is cut for one reader has to be for all: else a sum of what two of them make of
        it would be written by other atoms than where one layer stands for both.
        """
        births = []
        for each, priced in self._build.cuts.items():
            birth, _ = self._births.get(each, (None, None))
            if birth is not None and self._named.get(birth, _NOT_YET) > priced:
                self._named[birth] = priced
                births.append(birth)
        self._build.cuts.clear()
        return min(births)[0] if births else step + 1


_NOT_YET = 2
"""More than False, a cut that has to be, and True, one that only pays."""
