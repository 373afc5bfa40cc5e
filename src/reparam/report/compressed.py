"""What a page tells of a net in eight bits, and of one with fewer channels, as it is stored.

These records stand by themselves: they name their net in words and refer to none of the models that
other records list.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ChannelGroupRecord",
    "EqualisedRecord",
    "KeptRecord",
    "PruningRecord",
    "QuantizationRecord",
    "RatioRecord",
    "RoundedLayerRecord",
    "TrialRecord",
    "WidthRecord",
]


@dataclass(frozen=True)
class RoundedLayerRecord:
    """One layer rounded to eight bits, all other layers in float.

    The fields are those of :class:`reparam.lab.quantizing.LayerDiagnosis`: ranges, spreads (the
    widest channel over the median one), signal-to-noise ratios in decibels, and the share of
    samples whose class changes. `kept` says that the file holds this layer in float.
    """

    name: str
    what: str
    weight_low: float
    weight_high: float
    weight_spread: float
    input_low: float
    input_high: float
    input_spread: float
    weight_db: float
    input_db: float
    output_db: float
    flips: float | None = None
    kept: bool = False


@dataclass(frozen=True)
class EqualisedRecord:
    """Where channels were equalised: the spread of the activations between, before and after."""

    source: str
    readers: tuple[str, ...]
    spread_before: float
    spread_after: float


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
    equalised: tuple[EqualisedRecord, ...] = ()
    bias_corrected: bool = False
    calibration: str = ""
    layers: tuple[RoundedLayerRecord, ...] = ()
    simulated_db: float | None = None
    simulated_on: int | None = None


@dataclass(frozen=True)
class WidthRecord:
    """A layer and its channels in and out, before and after."""

    name: str
    what: str
    inputs_before: int
    outputs_before: int
    inputs_after: int
    outputs_after: int


@dataclass(frozen=True)
class ChannelGroupRecord:
    """Layers that write the same channels, of which each loses what all of them lose."""

    layers: tuple[str, ...]
    before: int
    after: int


@dataclass(frozen=True)
class KeptRecord:
    """A layer whose outputs stay, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class RatioRecord:
    """Latency of a net and of the smaller one, measured in interleaved rounds.

    `before_ms` and `after_ms` are medians in milliseconds a call, `ratio` is the median over the
    rounds of after / before, `low` and `high` are its quartiles. `threads` is None for the engine's
    own default.
    """

    engine: str
    batch: int
    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float
    threads: int | None = None


@dataclass(frozen=True)
class TrialRecord:
    """A net that the search tried."""

    multiply_adds: int
    latency: RatioRecord | None = None


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
    layers: tuple[WidthRecord, ...]
    groups: tuple[ChannelGroupRecord, ...] = ()
    kept: tuple[KeptRecord, ...] = ()
    solved: tuple[str, ...] = ()
    latency: RatioRecord | None = None
    trials: tuple[TrialRecord, ...] = ()
    macs_share: float | None = None
    latency_share: float | None = None
    latency_ms: float | None = None
    judged_on: str = ""
    samples: int | None = None
    correct_before: int | None = None
    correct_after: int | None = None
    file: str = ""
