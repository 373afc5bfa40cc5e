"""In which order channels go, and how many steps: to some multiply-adds, or a measured latency."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from reparam.deploy.benchmarking import benchmark, profile
from reparam.errors import InputError
from reparam.lab.pruning.graph import cut
from reparam.lab.pruning.targets import LatencyChange, Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from reparam.lab.pruning.graph import Group
    from reparam.lab.pruning.targets import Target

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


Progress: TypeAlias = Callable[[float, float, str], object]
"""Called with what is done, what there is in all, and what comes next."""

_SAME = 0.01
"""Nets that differ by less than this share of the multiply-adds are not told apart by time."""
_CONFIRMATIONS = 6
"""How often a net that misses the target in the last measurement is made smaller."""


@dataclass(frozen=True)
class Clock:
    """Where and how latency is measured.

    Attributes:
        engine: Name of an engine.
        precision: ``"fp32"`` or ``"bf16"``.
        threads: CPU threads of a call, or None for the engine's own default.
        rounds: Interleaved rounds of a measurement of the search; the last one has twice as many.
    """

    engine: str
    precision: str = "fp32"
    threads: int | None = None
    rounds: int = 9

    def compare(
        self, before: nn.Module, after: nn.Module, inputs: tuple[Tensor, ...], times: int = 1
    ) -> LatencyChange:
        """Measure two nets in turn, round by round."""
        result = benchmark(
            {"before": before, "after": after},
            inputs,
            engines=(self.engine,),
            precisions=(self.precision,),
            threads=(self.threads,),
            rounds=times * self.rounds,
        )
        if result.skipped:
            raise InputError(
                f"latency cannot be measured in {self.engine}: {result.skipped[0].why}"
            )
        ratio = result.ratio("after", "before")
        return LatencyChange(
            engine=self.engine,
            batch=result["before"].case.batch,
            threads=self.threads,
            before=result["before"].latency.median,
            after=result["after"].latency.median,
            ratio=ratio.median,
            quartiles=(ratio.quartiles.q1, ratio.quartiles.q3),
        )


class Search:
    """Tries nets after some steps of a schedule."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Tensor, ...],
        schedule: PruningSchedule,
        tell: Progress | None = None,
    ) -> None:
        self._model, self._inputs, self._schedule = model, inputs, schedule
        self._tell = tell
        self.full = profile(model, inputs).multiply_adds
        self._counted: dict[int, int] = {0: self.full}
        self.trials: list[Trial] = []

    def net(self, steps: int) -> nn.Module:
        """Build the net after so many steps."""
        smaller = cut(self._model, self._inputs, self._schedule.removed(steps))
        self._counted[steps] = profile(smaller, self._inputs).multiply_adds
        return smaller

    def reach(self, target: Target, clock: Clock | None) -> Trial:
        """Return the largest net that meets a target, as bisection finds it.

        With a clock, the net of the most steps that met it is measured once more, with more rounds;
        if it misses then, the next smaller ones are tried, so that what is reported was not chosen
        for having been lucky.

        Args:
            target: What is to be reached.
            clock: Measures latencies; None where only multiply-adds matter.

        Raises:
            InputError: The smallest net does not meet it.
        """
        low, high = 0, len(self._schedule)
        found = self._try(high, clock)
        if not target.met(found, self.full):
            raise InputError(target.missed(found, self.full))
        while high - low > 1 and (clock is None or self._differ(low, high)):
            middle = (low + high) // 2
            trial = self._try(middle, clock)
            if target.met(trial, self.full):
                high, found = middle, trial
            else:
                low = middle
        return found if clock is None else self._confirmed(high, target, clock)

    def _confirmed(self, steps: int, target: Target, clock: Clock) -> Trial:
        more, last = 1, len(self._schedule)
        for _ in range(_CONFIRMATIONS):
            trial = self._try(steps, clock, times=2)
            if target.met(trial, self.full):
                return trial
            if steps == last:
                break
            steps, more = min(last, steps + more), 2 * more
        raise InputError(target.missed(trial, self.full))

    def _differ(self, low: int, high: int) -> bool:
        """Whether two nets can be told apart by time."""
        return self._macs(low) - self._macs(high) > _SAME * self.full

    def _macs(self, steps: int) -> int:
        if steps not in self._counted:
            self.net(steps)
        return self._counted[steps]

    def _try(self, steps: int, clock: Clock | None = None, times: int = 1) -> Trial:
        if self._tell is not None:
            done = len(self.trials)
            total = max(done + 1, len(self._schedule).bit_length() + (2 if clock else 1))
            what = "building" if clock is None else f"measuring in {clock.engine}"
            self._tell(done, total, f"{what}, step {steps} of {len(self._schedule)}")
        net = self.net(steps)
        latency = clock.compare(self._model, net, self._inputs, times) if clock else None
        self.trials.append(Trial(steps, self._counted[steps], latency))
        return self.trials[-1]
