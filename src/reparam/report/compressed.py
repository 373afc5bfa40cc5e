"""What a page tells of a net in eight bits, and of one with fewer channels, as it is stored.

These records stand by themselves: they name their net in words and refer to none of the models that
other records list. What :func:`reparam.quantize` and :func:`reparam.prune` return stands in them as
it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from reparam.lab.pruning.result import ChannelGroup, Kept, LayerWidths
from reparam.lab.pruning.targets import LatencyChange, Trial
from reparam.lab.quantizing.diagnosing import LayerDiagnosis
from reparam.lab.quantizing.equalizing import Equalisation
from reparam.report.checks import need, need_right


@dataclass(frozen=True)
class QuantizationRecord:
    """A net in eight bits beside the float net, judged on the same samples in its engine.

    Counts of samples are None where classes are not known. `layers` are in running order, empty
    where no diagnosis was made; `simulated_db` is the ratio at the output with all of them rounded
    at once, by simulation on `simulated_on` samples.
    """

    model: str
    engine: str
    format: str
    file: str
    judged_on: str
    samples: int
    output_db: float
    float_bytes: int
    size_bytes: int
    quantized: tuple[str, ...]
    correct_float: int | None = None
    correct: int | None = None
    agree: int | None = None
    kept_float: tuple[str, ...] = ()
    equalised: tuple[Equalisation, ...] = ()
    bias_corrected: bool = False
    calibration: str = ""
    layers: tuple[LayerDiagnosis, ...] = ()
    simulated_db: float | None = None
    simulated_on: int | None = None

    def __post_init__(self) -> None:
        name = f"{self.model} in eight bits"
        judged = f"{name} was judged on {self.samples} samples; at least 1 is needed"
        need(self.samples >= 1, judged)
        need_right(name, self.samples, self.correct_float, self.correct, self.agree)
        for size in (self.float_bytes, self.size_bytes):
            need(size >= 1, f"{name} has a size of {size} bytes; more than 0 are needed")


@dataclass(frozen=True)
class PruningRecord:
    """A net with fewer channels beside the one that it came from.

    `target` says in words what was asked for; `macs_share`, `latency_share` or `latency_ms` holds
    it as a number. `correct_before` and `correct_after` of `samples` are None where nothing was
    judged. `layers` are in the order in which the net registers them.
    """

    model: str
    target: str
    importance: str
    multiply_adds_before: int
    multiply_adds_after: int
    parameters_before: int
    parameters_after: int
    layers: tuple[LayerWidths, ...]
    groups: tuple[ChannelGroup, ...] = ()
    kept: tuple[Kept, ...] = ()
    solved: tuple[str, ...] = ()
    latency: LatencyChange | None = None
    trials: tuple[Trial, ...] = ()
    macs_share: float | None = None
    latency_share: float | None = None
    latency_ms: float | None = None
    judged_on: str = ""
    samples: int | None = None
    correct_before: int | None = None
    correct_after: int | None = None
    file: str = ""

    def __post_init__(self) -> None:
        name = f"{self.model}, pruned,"
        need(self.layers, f"{name} has no layers; at least 1 is needed")
        counts = self.multiply_adds_before, self.parameters_before
        need(
            min(counts) >= 1,
            f"{name} had {counts[0]} multiply-adds and {counts[1]} parameters; more than 0 of each "
            "are needed",
        )
        need_right(name, self.samples, self.correct_before, self.correct_after)
        timed = self.latency is None or self.latency.before > 0
        need(timed, f"{name} took no time before; more than 0 is needed")
