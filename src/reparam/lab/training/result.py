"""What a training run reports while it goes, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

    from reparam.lab.training.recipe import Recipe

SCHEMA = "reparam.training/1"
"""Of the result file that a run leaves."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a run.

    Attributes:
        epoch: 1 for the first.
        train_loss: Mean over the epoch's images, with augmentation and label smoothing.
        validation_loss: Mean cross-entropy over the validation images, without smoothing.
        validation_accuracy: Share of the validation images classified correctly, 0 to 1, in the
            precision of the run.
        learning_rate: At the epoch's last step.
        train_seconds: Wall time of the training steps since the run was started or resumed in this
            epoch.
        seconds: Wall time since the start of the run, over all resumed parts.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    train_seconds: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """Where a run is, given to the progress hook after every step and every epoch.

    Attributes:
        epoch: Epoch under way, 1 for the first.
        epochs: Epochs in all.
        step: Batches done in this epoch.
        steps: Batches of an epoch.
        loss: Training loss of the batch just done.
        record: The epoch's record when an epoch has just ended, else None.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    record: EpochRecord | None = None


OnProgress: TypeAlias = Callable[[Progress], None]
WrapOptimizer: TypeAlias = Callable[[torch.optim.Optimizer, nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Hardware:
    """What a run uses, in Lightning's words.

    Under torchrun or SLURM every process gives the same values.

    Attributes:
        accelerator: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: Processes on each machine, one device each.
        nodes: Machines.
        strategy: ``"auto"``: one process, or distributed data parallel where there are several.
        sync_batchnorm: Batch statistics over all processes rather than each one's own.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    strategy: str = "auto"
    sync_batchnorm: bool = False


@dataclass(frozen=True)
class OnlineRun:
    """How branches ran as one convolution (:func:`reparam.online`).

    Attributes:
        blocks: How many blocks did.
        compile_seconds: How long their passes took to compile; None where none were asked for.
    """

    blocks: int
    compile_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A finished run.

    Attributes:
        model: The trained model in eval mode on the CPU; a copy, the model given to :func:`train`
            is as it was. With an average of the weights (`recipe.ema`), it holds the average.
        history: One record per epoch.
        validation_accuracy: Of `model` in float32. It holds the last weights: nothing was chosen.
        test_accuracy: Of `model` on the test split, where the data has one.
        best_epoch: The epoch with the highest validation accuracy, 1 for the first; the earliest of
            equals.
        best: Weights of that epoch, ``.safetensors``.
        last: Weights of `model`, ``.safetensors``.
        resume: The checkpoint from which the run could have gone on.
        seconds: Wall time of the run in all its parts, validation included.
        recipe: What was used, overrides included; its precision is the one computed in.
        seed: What was used.
        data_fingerprint: Of the data set.
        environment: Versions and machine.
        images: How many there are in each split.
        online: How branches ran as one convolution; None where each ran by itself.
    """

    model: nn.Module
    history: tuple[EpochRecord, ...]
    validation_accuracy: float
    test_accuracy: float | None
    best_epoch: int
    best: Path
    last: Path
    resume: Path
    seconds: float
    recipe: Recipe
    seed: int
    data_fingerprint: str
    environment: Mapping[str, str | int]
    images: Mapping[str, int] = field(default_factory=dict)
    online: OnlineRun | None = None

    @property
    def accuracy(self) -> float:
        """The test accuracy where there is a test split, else the validation accuracy; 0 to 1."""
        return self.validation_accuracy if self.test_accuracy is None else self.test_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the model as plain values for JSON, files by name only."""
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        del told["resume"]
        return told | {
            "schema": SCHEMA,
            "model": type(self.model).__name__,
            "history": [asdict(record) for record in self.history],
            "best": self.best.name,
            "last": self.last.name,
            "recipe": self.recipe.to_dict(),
            "online": None if self.online is None else asdict(self.online),
        }
