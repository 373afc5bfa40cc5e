"""Does a network as it was read compute what its own runtime computes?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reparam.diffing.reading import Side
from reparam.diffing.running import Run, furthest_apart
from reparam.diffing.tape import Tape
from reparam.diffing.values import Form

_MISREAD = 1e-3
"""Share of the largest output by which a network as read may differ from its own runtime."""

_PER_UNIT = 64
"""The same in units of rounding, for runtimes that compute in half precision."""


def bound(side: Side) -> float:
    """How far a runtime may be from a network as it was read, as a share of the largest output."""
    return max(_MISREAD, _PER_UNIT * side.unit)


class Readings:
    """What networks as they were read compute for some inputs, each computed once."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = inputs
        self._known: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    def off(
        self, side: Side, tape: Tape, expected: Sequence[Tensor], readings: Sequence[list[Form]]
    ) -> float:
        """How far a side is from what it was read as, as a share of its largest output.

        It is one of the readings, which are the same but for rounding; the last is its own. What
        is told is the first way of running them that is near enough, or else the nearest.
        """
        shapes = [tuple(x.shape) for x in expected]
        if any([form.shape for form in reading] != shapes for reading in readings):
            return float("inf")
        ways = [(each, torch.float32) for each in readings]
        nearest = float("inf")
        for reading, kind in (*ways, (readings[-1], torch.float64)):
            nearest = min(nearest, furthest_apart(self._outputs(reading, kind), expected))
            if nearest <= bound(side):
                return nearest
        return min(nearest, self._stepwise(side, tape, expected, readings[-1]))

    def _stepwise(
        self, side: Side, tape: Tape, expected: Sequence[Tensor], reading: list[Form]
    ) -> float:
        """The same where rounding makes the outputs: of what was recorded, and by normal form.

        What was recorded does what the runtime does, operation by operation if it is another's
        code; and without rounding it does what normal form does.
        """
        if side.steps is None:
            recorded = furthest_apart(tape.run(self._inputs), expected)
        else:
            recorded = side.steps(self._inputs)
        exact = tape.run(self._inputs, exactly=True)
        return max(recorded, furthest_apart(self._outputs(reading, torch.float64), exact))

    def _outputs(self, reading: list[Form], kind: torch.dtype) -> list[Tensor]:
        key = id(reading), kind
        if key not in self._known:
            run = Run(self._inputs, kind=kind)
            self._known[key] = [run(form) for form in reading]
        return self._known[key]
