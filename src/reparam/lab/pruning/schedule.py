"""In which order channels go: each step takes a few channels from one group."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from reparam.lab.pruning.graph import Group

__all__ = ["PruningSchedule", "pruning_schedule"]

_LEAST = 0.1
"""Share of its channels that every group keeps, for a layer with next to none ends the net."""


@dataclass(frozen=True, eq=False)
class PruningSchedule:
    """What goes in each step.

    Attributes:
        steps: For each step, the group (by its root) and the channels of the root that it loses
            there, int64. The first step takes what counts least.
    """

    steps: tuple[tuple[str, Tensor], ...]

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.steps)

    def removed(self, steps: int) -> dict[str, Tensor]:
        """Return all channels that are gone after so many steps, by the root of their group."""
        gone: dict[str, list[Tensor]] = {}
        for root, channels in self.steps[:steps]:
            gone.setdefault(root, []).append(channels)
        return {root: torch.cat(parts).sort().values for root, parts in gone.items()}


def pruning_schedule(
    groups: Sequence[Group], importance: Sequence[Tensor], *, multiple: int
) -> PruningSchedule:
    r"""Order the channels of all groups by what they count in their group.

    Every step brings the width of its group down to the next multiple. Within a group the channels
    go in the order of their importance. Between groups the steps go in the order of

    .. math:: \frac{C}{n} \log \frac{I}{I'}

    for a step that takes n of C channels and leaves I' of the importance I that the group still
    had. It has no unit, so that layers can be compared; and it grows as a group becomes narrow,
    where the importance of a channel, which is measured with all the others there, says too little.

    Args:
        groups: The groups.
        importance: For each group, float64, shape (width,), not negative.
        multiple: Every width becomes a multiple of this many channels.
    """
    queue: list[tuple[float, int, int]] = []
    steps = [
        _steps(group, values, multiple) for group, values in zip(groups, importance, strict=True)
    ]
    for index, own in enumerate(steps):
        if own:
            heapq.heappush(queue, (own[0][0], index, 0))
    ordered = []
    while queue:
        _, index, position = heapq.heappop(queue)
        own = steps[index]
        ordered.append((groups[index].root, own[position][1]))
        if position + 1 < len(own):
            heapq.heappush(queue, (own[position + 1][0], index, position + 1))
    return PruningSchedule(tuple(ordered))


def _steps(group: Group, importance: Tensor, multiple: int) -> list[tuple[float, Tensor]]:
    """Return the steps of one group: the score of each, and its channels."""
    # One unit is one channel, or one in each group of a grouped convolution.
    units = importance.view(group.folds, -1).sum(0)
    order = units.argsort(stable=True)
    step = math.lcm(multiple, group.folds)
    least = max(step, math.ceil(_LEAST * group.width))
    offsets = torch.arange(group.folds).unsqueeze(1) * len(units)
    left = units[order].flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(units.dtype).tiny)
    steps, width, taken = [], group.width, 0
    while (width - 1) // step * step >= least:
        narrower = (width - 1) // step * step
        count = (width - narrower) // group.folds
        chosen = order[taken : taken + count]
        score = len(units) / count * float((left[taken] / left[taken + count]).log())
        steps.append((score, (chosen + offsets).flatten()))
        width, taken = narrower, taken + count
    return steps
