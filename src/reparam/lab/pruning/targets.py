"""What pruning is to reach, checked before anything is built, and how a net did by it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

from reparam._support.spelling import advice
from reparam.errors import InputError

_TIME = re.compile(r"\s*([0-9.eE+-]+)\s*(ms|us|µs|s)\s*")
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


@dataclass(frozen=True)
class LatencyChange:
    """Latency of the net that was given and of the new one, measured in interleaved rounds.

    Attributes:
        engine: Where.
        batch: Inputs a call.
        threads: CPU threads of a call; None for the engine's own default.
        before: Median seconds a call, of the net that was given.
        after: The same of the new net.
        ratio: Median over the rounds of after / before.
        quartiles: First and third quartile of that ratio.
    """

    engine: str
    batch: int
    threads: int | None
    before: float
    after: float
    ratio: float
    quartiles: tuple[float, float]

    @property
    def clear(self) -> bool:
        """Whether one of the two is faster in most rounds."""
        low, high = self.quartiles
        return not low <= 1 <= high

    def __str__(self) -> str:
        low, high = self.quartiles
        return (
            f"{1e3 * self.before:.3g} ms -> {1e3 * self.after:.3g} ms in {self.engine}: "
            f"{self.ratio:.2f} ({low:.2f} to {high:.2f})"
        )


@dataclass(frozen=True)
class Trial:
    """One net that the search tried.

    Attributes:
        steps: Steps of the schedule of channels that it has taken.
        multiply_adds: Of one call.
        latency: How it compared with the net that was given, or None where only multiply-adds were
            asked for.
    """

    steps: int
    multiply_adds: int
    latency: LatencyChange | None = None


@dataclass(frozen=True)
class MacsTarget:
    """Multiply-adds to reach.

    Attributes:
        share: Of those of the net that was given.
    """

    share: float

    def __str__(self) -> str:
        return f"{self.share:g} of the multiply-adds"

    def met(self, trial: Trial, full: int) -> bool:
        """Whether a net reaches it; `full` are the multiply-adds of the net that was given."""
        return trial.multiply_adds <= self.share * full

    def missed(self, trial: Trial, full: int) -> str:
        """Say that not even the smallest net reaches it."""
        return (
            f"{self} cannot be reached: with all channels gone that may go, "
            f"{trial.multiply_adds / full:.3f} are left; ask for more, or lower `multiple`"
        )


@dataclass(frozen=True)
class LatencyTarget:
    """A latency to reach.

    Attributes:
        ratio: To that of the net that was given; or None.
        seconds: A call; or None.
    """

    ratio: float | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{1e3 * self.seconds:g} ms"
        return f"{self.ratio:g} of the latency"

    def met(self, trial: Trial, _full: int) -> bool:
        """Whether a net that was measured reaches it."""
        latency: Any = trial.latency
        if self.seconds is not None:
            return bool(latency.after <= self.seconds)
        return self.ratio is not None and latency.ratio <= self.ratio

    def missed(self, trial: Trial, _full: int) -> str:
        """Say that not even the smallest net reaches it."""
        latency: Any = trial.latency
        return (
            f"{self} cannot be reached: the smallest net that was tried takes "
            f"{1e3 * latency.after:.3g} ms, {latency.ratio:.2f} of the {1e3 * latency.before:.3g} "
            f"ms before, in {latency.engine}; ask for more, lower `multiple`, or choose another "
            f"engine"
        )


Target: TypeAlias = MacsTarget | LatencyTarget


def target_of(macs: float | None, latency: float | str | None) -> Target:
    """Read the one that is given.

    Raises:
        InputError: It is of no use, or not one of the two is given.
    """
    if macs is not None and latency is None:
        return macs_target(macs)
    if latency is not None and macs is None:
        return latency_target(latency)
    raise InputError(
        "what is to be left is not given, or given twice"
        + advice("; give {macs} or {latency}, a share such as 0.5", macs=..., latency=...)
    )


def latency_target(value: float | str) -> LatencyTarget:
    """Read a ratio, or a time with its unit.

    >>> latency_target(0.5)
    LatencyTarget(ratio=0.5, seconds=None)
    >>> latency_target("2.5 ms").seconds
    0.0025

    Raises:
        InputError: It is neither.
    """
    if isinstance(value, str):
        found = _TIME.fullmatch(value)
        if found:
            seconds = _number(found[1], value) * _UNITS[found[2]]
            if not 0 < seconds < math.inf:
                raise InputError(f"latency is {value!r}; a time above 0 is needed, such as '2.5ms'")
            return LatencyTarget(seconds=seconds)
        value = _number(value, value)
    return LatencyTarget(
        ratio=_ratio(value, "latency", "; for a time give its unit, as in '2.5ms'")
    )


def macs_target(value: float) -> MacsTarget:
    """Read a share of the multiply-adds.

    Raises:
        InputError: It is none.
    """
    return MacsTarget(_ratio(value, "macs", ""))


def _number(text: str, value: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"latency is {value!r}; needed is a share of the latency, such as 0.5, or a time with "
            f"its unit, such as '2.5ms'"
        ) from None


def _ratio(value: float, name: str, hint: str) -> float:
    if not 0 < value < 1:
        raise InputError(
            f"{name} is {value:g}; needed is the share that is to be left, above 0 and below 1, "
            f"such as 0.5{hint}"
        )
    return float(value)
