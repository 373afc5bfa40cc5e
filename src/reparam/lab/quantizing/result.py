"""What quantizing came to: the file in its engine against the float net, sample by sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reparam.deploy.engines.int8 import right_on
from reparam.deploy.engines.program import Axes
from reparam.errors import ExportError
from reparam.lab.quantizing.arithmetic import ratio
from reparam.lab.quantizing.diagnosing import Diagnosis
from reparam.lab.quantizing.equalizing import Equalisation
from reparam.verifying import NothingShownWarning

if TYPE_CHECKING:
    from reparam.deploy.engines import Runner
    from reparam.lab.quantizing.samples import Evaluation

_ROUNDING = 1e-5
"""Share of the largest output that changes of it may be by rounding in float32."""


@dataclass(frozen=True)
class Score:
    """How a quantized file does in its engine, beside the float net in PyTorch.

    Attributes:
        on: What both were run on.
        samples: Number of samples.
        float_accuracy: Share of samples, 0 to 1, that the float net puts in their class; ``None``
            where the classes are not known.
        accuracy: The same of the quantized file.
        agreement: Share of samples on which both predict the same class; ``None`` where the output
            is not (samples, classes).
        output_db: Signal-to-quantization-noise ratio of the outputs, in decibels.
    """

    on: str
    samples: int
    float_accuracy: float | None
    accuracy: float | None
    agreement: float | None
    output_db: float

    @property
    def drop(self) -> float | None:
        """Points (hundredths) of accuracy lost; where no classes are known, of agreement."""
        if self.float_accuracy is not None and self.accuracy is not None:
            return 100 * (self.float_accuracy - self.accuracy)
        return None if self.agreement is None else 100 * (1 - self.agreement)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as a dictionary that JSON can hold."""
        return asdict(self) | {"drop": self.drop}

    def __str__(self) -> str:
        parts = []
        if self.float_accuracy is not None and self.accuracy is not None:
            parts.append(f"{self.accuracy:.2%} where the float net has {self.float_accuracy:.2%}")
        if self.agreement is not None:
            parts.append(f"the same class on {self.agreement:.2%}")
        return ", ".join([*parts, f"{self.output_db:.1f} dB", f"on {self.on}"])


class _Tally:
    """Counts over batches."""

    def __init__(self) -> None:
        self.samples = self.labelled = 0
        self.right_exact = self.right = self.same = 0
        self.signal = self.noise = 0.0
        self.classes = True
        self.first: Tensor | None = None
        self.change = self.largest = 0.0

    @property
    def varies(self) -> bool:
        """Whether the float net's output changes with the samples by more than rounding does."""
        return self.samples < 2 or self.change > _ROUNDING * self.largest

    def add(self, exact: Tensor, found: Tensor, labels: Tensor | None) -> None:
        self.samples += len(exact)
        self.signal += float(exact.double().square().sum())
        self.noise += float((exact.double() - found.double()).square().sum())
        self.first = exact[:1] if self.first is None else self.first
        if exact[:1].shape == self.first.shape:
            self.change = max(self.change, float((exact - self.first).abs().max()))
        else:
            self.change = float("inf")
        self.largest = max(self.largest, float(exact.abs().max()))
        self.classes = self.classes and exact.dim() == 2 and exact.shape[1] > 1
        if not self.classes:
            return
        predicted, wanted = found.argmax(1), exact.argmax(1)
        self.same += int((predicted == wanted).sum())
        if labels is not None:
            self.labelled += len(labels)
            self.right += int((predicted == labels).sum())
            self.right_exact += int((wanted == labels).sum())

    def read(self, on: str) -> Score:
        known = self.classes and self.labelled == self.samples
        return Score(
            on=on,
            samples=self.samples,
            float_accuracy=self.right_exact / self.samples if known else None,
            accuracy=self.right / self.samples if known else None,
            agreement=self.same / self.samples if self.classes else None,
            output_db=ratio(self.signal, self.noise),
        )


def score(
    reference: nn.Module,
    runner: Runner,
    evaluation: Evaluation,
    *,
    batch: int,
    progress: Callable[[int, int], object],
) -> Score:
    """Run both on all of it.

    Args:
        reference: The float net, in eval mode.
        runner: The quantized file in its engine.
        evaluation: What to run them on.
        batch: Samples that the file takes at once.
        progress: Called with batches done and, where known, batches in all (else 0).

    Raises:
        ExportError: The engine fails, or returns something that is not finite or of another shape.

    Warns:
        NothingShownWarning: The output of the float net does not change with the samples.
    """
    tally = _Tally()
    for done, (inputs, labels) in enumerate(evaluation.batches):
        progress(done, evaluation.length or 0)
        with torch.no_grad():
            exact = reference(inputs)
        tally.add(exact, _run(runner, inputs, batch, tuple(exact.shape)), labels)
    if not tally.samples:
        raise ExportError("there is nothing to judge the quantized file on: no evaluation samples")
    if not tally.varies:
        warnings.warn(
            f"the output of the float net does not change from sample to sample on "
            f"{evaluation.name}, so that nothing was shown; judge on samples on which it does",
            NothingShownWarning,
            stacklevel=3,
        )
    return tally.read(evaluation.name)


def _run(runner: Runner, inputs: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    try:
        found = torch.cat([runner.run((part,))[0] for part in torch.split(inputs, batch)])
    except Exception as error:
        raise ExportError(
            f"the engine fails on samples of shape {tuple(inputs.shape[1:])}: {error}; "
            "nothing was written"
        ) from error
    if tuple(found.shape) != shape or not torch.isfinite(found).all():
        what = f"the shape {tuple(found.shape)} where the float net returns {shape}"
        if tuple(found.shape) == shape:
            what = "values that are not finite"
        raise ExportError(f"the quantized file returns {what}; nothing was written")
    return found


@dataclass(frozen=True)
class QuantizeResult:
    """What was written, and how it compares with the float net in its engine.

    Attributes:
        path: The file (of OpenVINO's two, the ``.xml``).
        format: Name of the format.
        engine: The engine that it was judged in.
        score: Accuracy and agreement there.
        diagnosis: What rounding does to each layer, with the remedies applied; ``None`` if it was
            not asked for.
        quantized: Paths of the layers that the file holds in integers.
        kept_float: Paths of the layers that were to stay in float.
        target: The processors that it was made for; the name of one of
            :data:`reparam.lab.quantizing.TARGETS`.
        weight_bits: 8; or 7, which every processor adds up right.
        equalised: Where channels were equalised.
        bias_corrected: Whether biases were corrected.
        calibration: What the ranges were read off.
        input_shape: Shape of one sample, without the batch.
        dynamic_axes: For each input, the names of its variable dimensions by position.
        metadata: What the file says about itself.
        size_bytes: Size of the file or files.
        float_bytes: Bytes of the parameters of the float net.
        seconds: Time it took.
    """

    path: Path
    format: str
    engine: str
    score: Score
    diagnosis: Diagnosis | None
    quantized: tuple[str, ...]
    kept_float: tuple[str, ...]
    target: str
    weight_bits: int
    equalised: tuple[Equalisation, ...]
    bias_corrected: bool
    calibration: str
    input_shape: tuple[int, ...]
    dynamic_axes: Axes
    metadata: dict[str, str]
    size_bytes: int
    float_bytes: int
    seconds: float

    @property
    def right_on(self) -> str:
        """The processors on which the file computes what its numbers say, in words."""
        return right_on(self.weight_bits)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a dictionary that JSON can hold."""
        axes = [{str(i): name for i, name in each.items()} for each in self.dynamic_axes]
        whole = asdict(self) | {"path": self.path.name, "dynamic_axes": axes}
        return whole | {"score": self.score.as_dict()}

    def __str__(self) -> str:
        size = f"{self.size_bytes / 1e6:.2f} MB"
        return f"{self.path.name} ({self.format}, int8, {size}) in {self.engine}: {self.score}"
