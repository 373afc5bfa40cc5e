"""Checkpoints of a run: weights as safetensors, and one Lightning checkpoint to go on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reparam._files import atomic_path
from reparam.errors import InputError
from reparam.train.module import Training

__all__ = ["RunFiles", "SaveRun", "load_weights", "save_weights"]


class RunFiles:
    """Where a run keeps what."""

    def __init__(self, folder: Path) -> None:
        """Name the files of a run in `folder`."""
        self.folder = folder
        self.best = folder / "best.safetensors"
        self.last = folder / "last.safetensors"
        self.resume = folder / "resume.ckpt"
        self.result = folder / "result.json"


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors, atomically."""
    _check_room(path, sum(tensor.numel() * tensor.element_size() for tensor in weights.values()))
    with atomic_path(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()},
            temporary,
        )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what :func:`save_weights` wrote."""
    model.load_state_dict(load_file(path))


class SaveRun(Checkpoint):
    """Write the resume checkpoint every so many steps and after every epoch, and the weights that are best so far."""

    def __init__(self, files: RunFiles, every_steps: int | None) -> None:
        """Write to `files`; within an epoch only when `every_steps` (optimizer steps) is given."""
        self._files = files
        self._every_steps = every_steps
        self._saved_step = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write the resume checkpoint in mid-epoch, after a whole optimizer step."""
        step = trainer.global_step
        last = (
            batch_idx + 1 == trainer.num_training_batches
        )  # the epoch's end is saved with its record
        if (
            self._every_steps
            and not last
            and step % self._every_steps == 0
            and step != self._saved_step
        ):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the best weights if these are the best, then the resume checkpoint."""
        assert isinstance(pl_module, Training)
        accuracies = [record.validation_accuracy for record in pl_module.history]
        if trainer.is_global_zero and accuracies[-1] > max(accuracies[:-1], default=-1.0):
            save_weights(pl_module.shown_weights(), self._files.best)
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        needed = self._files.resume.stat().st_size if self._files.resume.exists() else 0
        _check_room(self._files.resume, needed)
        partial = self._files.resume.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self._files.resume)


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed + (16 << 20):
        raise InputError(
            f"{path.parent} has {free >> 20} MiB free; writing {path.name} needs {(needed >> 20) + 16} MiB: "
            "free some space or choose another output folder"
        )
