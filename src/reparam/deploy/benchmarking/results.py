"""The record of a benchmark: raw samples, what they were measured on, and statistics of them."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam._support.files import write_text
from reparam._support.records import decode
from reparam._support.statistics import Quartiles, quartiles
from reparam.errors import InputError

if TYPE_CHECKING:
    import os

SCHEMA = "reparam-benchmark/1"


@dataclass(frozen=True)
class Case:
    """One thing that is measured: a model in an engine, at a precision, a batch and a thread count.

    Attributes:
        model: The model's name in the mapping given to :func:`reparam.benchmark`.
        engine: Name of the engine.
        precision: ``"fp32"`` or ``"bf16"``.
        batch: Samples per call.
        threads: CPU threads, or ``None`` for the engine's own default.
    """

    model: str
    engine: str = "eager"
    precision: str = "fp32"
    batch: int = 1
    threads: int | None = None

    @property
    def way(self) -> tuple[str, str, str]:
        """Model, engine and precision."""
        return self.model, self.engine, self.precision

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        return f"{self.model} [{self.engine} {self.precision}, batch {self.batch}{threads}]"


@dataclass(frozen=True)
class Measurement:
    """The samples of one case.

    Attributes:
        case: What was measured.
        samples: Seconds of each timed call, one tuple a round.
        prepare_seconds: Seconds it took to convert, load or compile the model, once.
    """

    case: Case
    samples: tuple[tuple[float, ...], ...]
    prepare_seconds: float = 0.0

    @property
    def rounds(self) -> tuple[float, ...]:
        """Seconds per call in each round: the median of the round's calls."""
        return tuple(statistics.median(calls) for calls in self.samples)

    @property
    def latency(self) -> Quartiles:
        """Quartiles over the rounds of the seconds per call."""
        return quartiles(self.rounds)

    @property
    def throughput(self) -> float:
        """Samples per second at the median latency."""
        return self.case.batch / self.latency.median


@dataclass(frozen=True)
class Ratio:
    """How many times longer one case takes than another, pair by pair in each round.

    Attributes:
        numerator: The case on top.
        denominator: The case below.
        values: One ratio a round.
    """

    numerator: Case
    denominator: Case
    values: tuple[float, ...]

    @property
    def quartiles(self) -> Quartiles:
        """Quartiles of the ratio over the rounds."""
        return quartiles(self.values)

    @property
    def median(self) -> float:
        """Median ratio over the rounds."""
        return self.quartiles.median

    def __str__(self) -> str:
        q = self.quartiles
        return f"{self.numerator} / {self.denominator}: {q.median:.2f} ({q.q1:.2f} to {q.q3:.2f})"


@dataclass(frozen=True)
class Skipped:
    """A combination that was asked for and cannot be measured, and why."""

    case: Case
    why: str


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything a benchmark found, with the raw samples.

    Attributes:
        measurements: One record a case, in the order asked for.
        skipped: Combinations that could not be measured.
        environment: Processor, cores and versions.
        shapes: Shape of each input, without the batch.
        settings: Rounds, warm-up calls, seed and the like.
        process_peak_bytes: Largest resident size of the process so far, models and engines
            included; ``None`` where the system does not tell.
    """

    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    process_peak_bytes: int | None = None

    def __getitem__(self, key: str | tuple[Any, ...] | Case) -> Measurement:
        """Return the one measurement of a case, a model name, or (model, engine, ...).

        Raises:
            KeyError: No measurement fits, or more than one does.
        """
        if isinstance(key, Case):
            found = [m for m in self.measurements if m.case == key]
        else:
            wanted = (key,) if isinstance(key, str) else key
            found = [m for m in self.measurements if astuple(m.case)[: len(wanted)] == wanted]
        if len(found) != 1:
            cases = "; ".join(str(m.case) for m in (found or self.measurements))
            raise KeyError(
                f"{key!r} fits {len(found)} measurements, and needs to fit one of {cases}"
            )
        return found[0]

    def ratio(self, numerator: str | tuple[Any, ...] | Case, denominator: Any) -> Ratio:
        """Return how many times longer ``numerator`` takes than ``denominator``.

        The two are compared round by round, so that what slows the machine down for a while slows
        both.

        Raises:
            KeyError: A key fits no measurement, or more than one.
        """
        top, bottom = self[numerator], self[denominator]
        pairs = zip(top.rounds, bottom.rounds, strict=True)
        return Ratio(top.case, bottom.case, tuple(a / b for a, b in pairs))

    def fastest(self, model: str | None = None) -> Measurement:
        """Return the measurement with the least time per sample, of one model or of all.

        Raises:
            InputError: There is no measurement of that model.
        """
        choices = [m for m in self.measurements if model in (None, m.case.model)]
        if not choices:
            known = ", ".join(dict.fromkeys(m.case.model for m in self.measurements))
            raise InputError(f"no measurement of {model!r}; measured models: {known or 'none'}")
        return max(choices, key=lambda m: m.throughput)

    def to_json(self) -> str:
        """Return the whole record, raw samples included, as JSON text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON, whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        write_text(path, self.to_json() + "\n")

    @classmethod
    def from_json(cls, text: str) -> BenchmarkResult:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: The text is not such a record.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"this is not a stored benchmark ({SCHEMA}): {error}") from error
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise InputError(f"the schema is {found!r}, and {SCHEMA!r} is needed")
        return decode(cls, data, "this is not a stored benchmark")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BenchmarkResult:
        """Read a stored record.

        Raises:
            InputError: The file is not such a record.
            OSError: The file cannot be read.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def __str__(self) -> str:
        head = ("case", "median ms", "q1", "q3", "samples/s")
        rows = [head, *(_row(m) for m in self.measurements)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join(lines + [f"not measured: {s.case}: {s.why}" for s in self.skipped])


def _row(measurement: Measurement) -> tuple[str, ...]:
    q = measurement.latency
    times = tuple(f"{1e3 * value:.3f}" for value in (q.median, q.q1, q.q3))
    return (str(measurement.case), *times, f"{measurement.throughput:.1f}")
