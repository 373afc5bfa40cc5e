"""The result file of a training run, as records that a page is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reparam._support.records import decode
from reparam.errors import InputError
from reparam.report.results import AccuracyRecord, ModelRecord, Results, TrainingRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = "reparam.training/1"
"""Of ``result.json`` in the folder of a run (:meth:`reparam.lab.training.TrainResult.to_dict`)."""


@dataclass(frozen=True)
class _Epoch:
    train_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class _Run:
    model: str
    history: tuple[_Epoch, ...]
    seconds: float
    best_epoch: int
    test_accuracy: float | None = None
    images: dict[str, int] = field(default_factory=dict)


def from_training(value: Mapping[str, object], where: str = "result") -> Results:
    """Put the loss of every epoch and the accuracy on record.

    Args:
        value: what a run left in ``result.json``.
        where: the name of that place, for messages.

    Raises:
        InputError: it is something else.
    """
    run = decode(_Run, value, where)
    if not 1 <= run.best_epoch <= len(run.history):
        raise InputError(
            f"{where}: the best epoch is {run.best_epoch} of {len(run.history)}, which cannot be"
        )
    losses = tuple(epoch.train_loss for epoch in run.history)
    return Results(
        title=f"Training of {run.model}",
        created="",
        models=(ModelRecord("run", run.model, "train"),),
        training=(TrainingRecord("run", len(run.history), run.seconds, losses),),
        accuracy=_accuracy(run, where),
    )


def _accuracy(run: _Run, where: str) -> tuple[AccuracyRecord, ...]:
    """Of the last epoch: on the test images where there are some, else on the validation images."""
    name, share = "test", run.test_accuracy
    if share is None:
        name, share = "validation", run.history[-1].validation_accuracy
    total = run.images.get(name, 0)
    if not 0 <= share <= 1:
        raise InputError(f"{where}: found the accuracy {share}; needed is a share from 0 to 1")
    if total < 1:
        return ()
    return (AccuracyRecord("run", round(share * total), total, on=f"{name} images"),)
