"""What a run writes: weights, a Lightning checkpoint to go on from, and its records for others."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Checkpoint

from reparam._support.files import atomic_path, write_text
from reparam._support.optional import require
from reparam.errors import InputError
from reparam.lab.training.result import EpochRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import lightning.pytorch as pl
    from torch import Tensor

    from reparam.lab.training.module import Training

_SPARE = 16 << 20
"""Bytes that should stay free on the disk."""


class RunFiles:
    """Where a run keeps what.

    Attributes:
        folder: The run's folder.
        best: Weights of the best epoch.
        last: Weights of the last epoch.
        resume: What a killed run goes on from.
        table: The epochs as CSV.
        result: The finished run as JSON.
        tensorboard: Event files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = folder / "best.safetensors"
        self.last = folder / "last.safetensors"
        self.resume = folder / "resume.ckpt"
        self.table = folder / "epochs.csv"
        self.result = folder / "result.json"
        self.tensorboard = folder / "tensorboard"


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors, atomically.

    Raises:
        InputError: The disk is full.
        MissingExtraError: safetensors is not installed.
    """
    files = require("safetensors.torch", extra="train", purpose="Saving weights")
    # Clones: tied weights share storage, and safetensors stores every tensor by itself.
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    check_room(path, sum(tensor.numel() * tensor.element_size() for tensor in content.values()))
    with atomic_path(path) as temporary:
        files.save_file(content, temporary)


class KeepRun(Checkpoint):
    """Write what a run leaves, after every epoch, and what to resume from also within one.

    A resumed run's records read as if it had never stopped.
    """

    def __init__(self, files: RunFiles, every_steps: int | None, *, tensorboard: bool) -> None:
        """Write to `files`; within an epoch only when `every_steps` (optimizer steps) is given."""
        self._files = files
        self._every_steps = every_steps
        self._saved_step = 0
        self._writer: Any = None
        self._tensorboard = (
            require("torch.utils.tensorboard", extra="train", purpose="TensorBoard logs")
            if tensorboard
            else None
        )

    def on_train_batch_end(  # type: ignore[override] # Lightning narrows `outputs`
        self, trainer: pl.Trainer, pl_module: Training, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the resume checkpoint in mid-epoch, after a whole optimizer step."""
        del pl_module, outputs, batch
        step = trainer.global_step
        last = batch_idx + 1 == trainer.num_training_batches  # saved with the epoch's record
        due = self._every_steps and step % self._every_steps == 0 and step != self._saved_step
        if due and not last:
            self._save(trainer)

    def on_train_epoch_end(  # type: ignore[override] # only ever used with Training
        self, trainer: pl.Trainer, pl_module: Training
    ) -> None:
        """Write the records, the best weights if these are, then the resume checkpoint."""
        if trainer.is_global_zero:
            write_text(self._files.table, _table(pl_module.history))
            self._write_events(pl_module.history[-1])
            accuracies = [record.validation_accuracy for record in pl_module.history]
            if accuracies[-1] > max(accuracies[:-1], default=-1.0):
                save_weights(pl_module.shown_weights(), self._files.best)
        self._save(trainer)

    def _write_events(self, record: EpochRecord) -> None:
        if self._tensorboard is None:
            return
        if self._writer is None:
            # purge_step hides events that a killed run wrote after its last checkpoint
            self._writer = self._tensorboard.SummaryWriter(
                str(self._files.tensorboard), purge_step=record.epoch
            )
        for name, value in asdict(record).items():
            if name != "epoch":
                self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the events file."""
        del trainer, pl_module, stage
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        path = self._files.resume
        if trainer.is_global_zero:
            check_room(path, path.stat().st_size if path.exists() else 0)
        partial = path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(path)


def check_room(path: Path, needed: int) -> None:
    """Raise if the disk of `path` has no room for so many bytes and a little more.

    Raises:
        InputError: It has not.
    """
    free = shutil.disk_usage(path.parent).free
    if free < needed + _SPARE:
        raise InputError(
            f"the disk of {path.parent} has {free >> 20} MiB free, and writing {path.name} needs "
            f"{(needed + _SPARE) >> 20} MiB: free some space or choose another output folder"
        )


def _table(history: Sequence[EpochRecord]) -> str:
    text = io.StringIO()
    names = [entry.name for entry in fields(EpochRecord)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, history))
    return text.getvalue()
