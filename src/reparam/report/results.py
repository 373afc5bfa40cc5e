"""The results of a run, as they are stored: what a page is drawn from.

Every record is frozen and holds counts, bytes, milliseconds and texts only, so that
``json.dumps(dataclasses.asdict(results))`` and :func:`reparam.report.load_results` are each other's
inverse.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from reparam.errors import InputError
from reparam.fusing.column import Place
from reparam.report.checks import need, need_share
from reparam.report.compressed import PruningRecord, QuantizationRecord
from reparam.report.differences import DifferenceRecord

SCHEMA = "reparam.results/2"


@dataclass(frozen=True)
class ModelRecord:
    """A model that the other records refer to by `key`.

    `role` is ``"train"``, ``"deploy"`` or ``"comparator"``; it decides the colour, and which two
    models the headline compares. Counts are None where nobody counted. `of` is the model that this
    is the `form` (``"train"`` or ``"deploy"``) of. `published_top1` is an accuracy in percent that
    `published_in` reports and `published_recipe` led to; it was not measured here.
    `published_longer` says that the recipe was longer than the papers' simple one, had stronger
    augmentation or a teacher.
    """

    key: str
    label: str
    role: str
    convolutions: int | None = None
    norms: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    bytes_moved: int | None = None
    note: str = ""
    of: str = ""
    form: str = ""
    family: str = ""
    published_top1: float | None = None
    published_in: str = ""
    published_recipe: str = ""
    published_longer: bool = False

    def __post_init__(self) -> None:
        top1 = self.published_top1
        share = top1 is None or 0 <= top1 <= 100
        need(share, f"{self.label} has a published accuracy of {top1} %; 0 to 100 is needed")


@dataclass(frozen=True)
class DataRecord:
    """The images a model was trained and tested on; `shape` is (channels, height, width)."""

    name: str
    train: int
    test: int
    classes: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TrainingRecord:
    """How a model was trained: epochs, seconds in all, and the loss after each epoch."""

    model: str
    epochs: int
    seconds: float
    loss: tuple[float, ...] = ()


@dataclass(frozen=True)
class TwinRecord:
    """One form of a net that was trained in several: its learning rate, losses and accuracy."""

    label: str
    role: str
    learning_rate: float
    seconds: float
    loss: tuple[float, ...]
    correct: int
    total: int

    def __post_init__(self) -> None:
        need_share(self.label, self.correct, self.total)


@dataclass(frozen=True)
class TwinsRecord:
    """A net trained with branches and without, which is the same `convolutions` once folded."""

    convolutions: int
    images: int
    twins: tuple[TwinRecord, ...]
    note: str = ""


@dataclass(frozen=True)
class AccuracyRecord:
    """Top-1: `correct` of `total` images, which `on` names."""

    model: str
    correct: int
    total: int
    engine: str = "eager"
    on: str = "test images"

    def __post_init__(self) -> None:
        need_share(self.model, self.correct, self.total)


@dataclass(frozen=True)
class AgreementRecord:
    """On how many of `total` images two models predict the same class."""

    reference: str
    candidate: str
    agree: int
    total: int
    engine: str = "eager"

    def __post_init__(self) -> None:
        need_share(self.candidate, self.agree, self.total)


@dataclass(frozen=True)
class CostRecord:
    """What a region costs.

    Layers are operations executed, `stored` counts weights, biases and running statistics, and
    multiply-adds are for one position of the region's input.
    """

    layers: int
    stored: int
    multiply_adds: float


@dataclass(frozen=True)
class RegionRecord:
    """A piece of the model that the plan folds, and the layer that it becomes."""

    where: str
    what: str
    into: str
    before: CostRecord
    after: CostRecord


@dataclass(frozen=True)
class RefusalRecord:
    """A piece of the model that the plan leaves as it is, with the reason."""

    where: str
    what: str
    why: str


@dataclass(frozen=True)
class PlanRecord:
    """What folds in `model`, and what does not; `column` is the net in the order it runs in."""

    model: str
    regions: tuple[RegionRecord, ...]
    refusals: tuple[RefusalRecord, ...] = ()
    column: tuple[Place, ...] = ()


@dataclass(frozen=True)
class BranchRecord:
    """One path of a block, from its input to the sum: the operators in order."""

    operators: tuple[str, ...]


@dataclass(frozen=True)
class BlockRecord:
    """A block before and after: parallel branches, then the operators behind their sum."""

    where: str
    before: tuple[BranchRecord, ...]
    after: tuple[BranchRecord, ...]
    tail: tuple[str, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class CheckRecord:
    """A comparison of two models: the largest differences and what was allowed."""

    what: str
    reference: str
    candidate: str
    max_abs: float
    max_rel: float
    ok: bool
    tolerance: str = ""
    agree: int | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        if self.agree is not None or self.total is not None:
            need_share(self.candidate, self.agree or 0, self.total or 0)


@dataclass(frozen=True)
class TimingRecord:
    """Raw times of one model in one engine, in milliseconds a call."""

    model: str
    engine: str
    samples_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        least = min(self.samples_ms, default=None)
        need(
            least is not None and least > 0,
            f"{self.model} in {self.engine} has a time of {least} ms; at least one is needed, "
            "above 0",
        )


@dataclass(frozen=True)
class LatencyRecord:
    """Timings that may be compared: same input, same threads, interleaved in one run."""

    title: str
    input_shape: tuple[int, ...]
    threads: int
    rows: tuple[TimingRecord, ...]
    dtype: str = "float32"
    note: str = ""


@dataclass(frozen=True)
class TraceRecord:
    """Bytes of live activations after each operator while a block runs.

    `operators[i]` ran, and while it did `live_bytes[i]` were alive, its input and output included.
    A block of none of the models has an empty `model`, and a `role` of its own. `predicted_bytes`
    is the peak that its structure lets expect.
    """

    model: str
    label: str
    operators: tuple[str, ...]
    live_bytes: tuple[int, ...]
    peak_bytes: int
    role: str = ""
    predicted_bytes: int | None = None

    def __post_init__(self) -> None:
        held = self.peak_bytes >= 1 and self.live_bytes
        need(held, f"{self.label} held {self.peak_bytes} bytes at most")
        need(
            len(self.operators) == len(self.live_bytes),
            f"{self.label} has {len(self.operators)} operators and {len(self.live_bytes)} amounts "
            "of bytes; as many of both are needed",
        )


@dataclass(frozen=True)
class MemoryRecord:
    """Activation memory over the life of comparable pieces that take the same input."""

    title: str
    scope: str
    input_shape: tuple[int, ...]
    input_bytes: int
    traces: tuple[TraceRecord, ...]
    note: str = ""

    def __post_init__(self) -> None:
        need(self.input_bytes, f"{self.title} has an input of no bytes; at least 1 is needed")


@dataclass(frozen=True)
class Results:
    """Everything one run measured. Each section may be empty; the page leaves it out then."""

    title: str
    created: str
    models: tuple[ModelRecord, ...]
    schema: str = SCHEMA
    command: str = ""
    data: DataRecord | None = None
    training: tuple[TrainingRecord, ...] = ()
    accuracy: tuple[AccuracyRecord, ...] = ()
    twins: TwinsRecord | None = None
    agreement: tuple[AgreementRecord, ...] = ()
    plan: PlanRecord | None = None
    block: BlockRecord | None = None
    checks: tuple[CheckRecord, ...] = ()
    latency: tuple[LatencyRecord, ...] = ()
    benchmarks: tuple[LatencyRecord, ...] = ()
    memory: tuple[MemoryRecord, ...] = ()
    quantizations: tuple[QuantizationRecord, ...] = ()
    prunings: tuple[PruningRecord, ...] = ()
    differences: tuple[DifferenceRecord, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def model(self, key: str) -> ModelRecord:
        """The model that other records call `key`.

        Raises:
            InputError: no model has that key.
        """
        for model in self.models:
            if model.key == key:
                return model
        known = ", ".join(model.key for model in self.models) or "(none)"
        raise InputError(f"the results speak of a model {key!r}; the models listed are: {known}")

    def role_of(self, trace: TraceRecord) -> str:
        """The role of what was traced: that of its model, or its own."""
        return self.model(trace.model).role if trace.model else trace.role

    def by_role(self, role: str) -> ModelRecord | None:
        """The model with that role that the page tells the story of, or None.

        That is the first one, but not where several models were measured in both forms: those are
        told of together.
        """
        named = [model for model in self.models if not model.of]
        if not named and len({model.of for model in self.models}) == 1:
            named = list(self.models)
        return next((model for model in named if model.role == role), None)


def to_json(results: Results) -> str:
    """The text of a results file: indented JSON, finite numbers only, one trailing newline."""
    return json.dumps(asdict(results), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
