"""How many steps of the schedule: to some multiply-adds, or to a latency that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from reparam.deploy.benchmarking import benchmark, profile
from reparam.errors import InputError
from reparam.lab.pruning.graph import cut
from reparam.lab.pruning.result import LatencyChange, Trial
from reparam.lab.pruning.targets import MacsTarget

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reparam.lab.pruning.schedule import PruningSchedule
    from reparam.lab.pruning.targets import LatencyTarget, Target

__all__ = ["Clock", "Outcome", "Progress", "Search"]

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


@dataclass(frozen=True, eq=False)
class Outcome:
    """The net that a search ended with."""

    steps: int
    model: nn.Module
    multiply_adds: int
    latency: LatencyChange | None


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
        self._full = profile(model, inputs).multiply_adds
        self._counted: dict[int, int] = {0: self._full}
        self.trials: list[Trial] = []

    @property
    def full(self) -> int:
        """Multiply-adds of the net that was given."""
        return self._full

    def net(self, steps: int) -> nn.Module:
        """Build the net after so many steps."""
        smaller = cut(self._model, self._inputs, self._schedule.removed(steps))
        self._counted[steps] = profile(smaller, self._inputs).multiply_adds
        return smaller

    def reach(self, target: Target, clock: Clock | None) -> Outcome:
        """Return the largest net that meets a target; a latency needs a clock.

        Raises:
            InputError: The smallest net does not meet it.
        """
        if isinstance(target, MacsTarget):
            return self.to_macs(target.share)
        assert clock is not None  # noqa: S101 - the caller makes one for latencies
        return self.to_latency(target, clock)

    def to_macs(self, share: float) -> Outcome:
        """Return the largest net with at most that share of the multiply-adds.

        Raises:
            InputError: The smallest net has more.
        """
        last = len(self._schedule)
        if self._try(last).multiply_adds > share * self._full:
            left = self._counted[last] / self._full
            raise InputError(
                f"{share:g} of the multiply-adds cannot be reached: with all channels gone that "
                f"may go, {left:.3f} are left; ask for more, or lower `multiple`"
            )
        low, high = 0, last  # low has too many, high has not
        while high - low > 1:
            middle = (low + high) // 2
            if self._try(middle).multiply_adds > share * self._full:
                low = middle
            else:
                high = middle
        return Outcome(high, self.net(high), self._counted[high], None)

    def to_latency(self, target: LatencyTarget, clock: Clock) -> Outcome:
        """Return a net that meets a latency, as large as bisection with measurements finds it.

        The net of the most steps that met it is measured once more, with more rounds; if it misses
        then, the next smaller ones are tried, so that what is reported was not chosen for having
        been lucky.

        Raises:
            InputError: The smallest net does not meet it.
        """
        last = len(self._schedule)
        smallest = self._try(last, clock)
        if not _met(target, smallest):
            raise _unreachable(target, smallest)
        low, high = 0, last
        while high - low > 1 and self._macs(low) - self._macs(high) > _SAME * self._full:
            middle = (low + high) // 2
            if _met(target, self._try(middle, clock)):
                high = middle
            else:
                low = middle
        return self._confirmed(high, target, clock)

    def _confirmed(self, steps: int, target: LatencyTarget, clock: Clock) -> Outcome:
        more, trial = 1, None
        for _ in range(_CONFIRMATIONS):
            trial = self._try(steps, clock, times=2)
            if _met(target, trial):
                return Outcome(steps, self.net(steps), trial.multiply_adds, trial.latency)
            if steps == len(self._schedule):
                break
            steps, more = min(len(self._schedule), steps + more), 2 * more
        assert trial is not None  # noqa: S101 - the loop ran
        raise _unreachable(target, trial)

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


def _met(target: LatencyTarget, trial: Trial) -> bool:
    latency: Any = trial.latency
    return target.met(latency.ratio, latency.after)


def _unreachable(target: LatencyTarget, trial: Trial) -> InputError:
    latency: Any = trial.latency
    return InputError(
        f"{target} cannot be reached: the smallest net that was tried takes "
        f"{1e3 * latency.after:.3g} ms, {latency.ratio:.2f} of the {1e3 * latency.before:.3g} ms "
        f"before, in {latency.engine}; ask for more, lower `multiple`, or choose another engine"
    )
