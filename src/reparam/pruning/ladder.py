"""In which order channels go: a ladder whose every rung takes a few channels from one group."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from reparam.pruning.graph import Group

__all__ = ["Ladder", "ladder"]

_LEAST = 0.1
"""Share of its channels that every group keeps, for a layer with next to none ends the net."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """What goes on each rung.

    Attributes:
        rungs: For each rung, the group (by its root) and the channels of the root that it loses
            there, int64. The first rung takes what counts least.
    """

    rungs: tuple[tuple[str, Tensor], ...]

    def __len__(self) -> int:
        """Return the number of rungs."""
        return len(self.rungs)

    def removed(self, height: int) -> dict[str, Tensor]:
        """Return all channels that are gone on that rung, by the root of their group."""
        gone: dict[str, list[Tensor]] = {}
        for root, channels in self.rungs[:height]:
            gone.setdefault(root, []).append(channels)
        return {root: torch.cat(parts).sort().values for root, parts in gone.items()}


def ladder(
    groups: Sequence[Group],
    importance: Sequence[Tensor],
    prices: Mapping[str, float],
    *,
    multiple: int,
) -> Ladder:
    """Order the channels of all groups by what they count for what they cost.

    Every rung brings the width of its group down to the next multiple; within a group the channels
    go in the order of their importance, and between groups in the order of the sum of what a rung
    loses, divided by what it saves.

    Args:
        groups: The groups.
        importance: For each group, float64, shape (width,), comparable between groups.
        prices: For each group, by its root: what one channel costs.
        multiple: Every width becomes a multiple of this many channels.
    """
    queue: list[tuple[float, int, int]] = []
    steps = [
        _steps(group, values, multiple) for group, values in zip(groups, importance, strict=True)
    ]
    for index, (group, own) in enumerate(zip(groups, steps, strict=True)):
        if own:
            heapq.heappush(queue, (own[0][0] / prices[group.root], index, 0))
    rungs = []
    while queue:
        _, index, position = heapq.heappop(queue)
        root, own = groups[index].root, steps[index]
        rungs.append((root, own[position][1]))
        if position + 1 < len(own):
            score = own[position + 1][0] / prices[root]
            heapq.heappush(queue, (score, index, position + 1))
    return Ladder(tuple(rungs))


def _steps(group: Group, importance: Tensor, multiple: int) -> list[tuple[float, Tensor]]:
    """Return the rungs of one group: the mean importance of the channels, and the channels."""
    # One unit is one channel, or one in each group of a grouped convolution.
    units = importance.view(group.folds, -1).sum(0) / group.folds
    order = units.argsort(stable=True)
    step = math.lcm(multiple, group.folds)
    least = max(step, math.ceil(_LEAST * group.width))
    offsets = torch.arange(group.folds).unsqueeze(1) * len(units)
    steps, width, taken = [], group.width, 0
    while (width - 1) // step * step >= least:
        narrower = (width - 1) // step * step
        count = (width - narrower) // group.folds
        chosen = order[taken : taken + count]
        steps.append((float(units[chosen].mean()), (chosen + offsets).flatten()))
        width, taken = narrower, taken + count
    return steps
