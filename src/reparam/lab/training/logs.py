"""The records of a run for other programs: a CSV table and TensorBoard events."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from reparam._support.files import write_text
from reparam._support.optional import require
from reparam.lab.training.result import EpochRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lightning.pytorch as pl

    from reparam.lab.training.checkpoints import RunFiles
    from reparam.lab.training.module import Training

__all__ = ["WriteLogs"]


class WriteLogs(Callback):
    """Write one row for each epoch. A resumed run's files read as if it had never stopped."""

    def __init__(self, files: RunFiles, *, tensorboard: bool) -> None:
        """Write to `files`."""
        self._files = files
        self._writer: Any = None
        self._tensorboard = (
            require("torch.utils.tensorboard", extra="train", purpose="TensorBoard logs")
            if tensorboard
            else None
        )

    def on_train_epoch_end(  # type: ignore[override] # only ever used with Training
        self, trainer: pl.Trainer, pl_module: Training
    ) -> None:
        """Write the table anew, and the events of the last epoch."""
        if not trainer.is_global_zero:
            return
        write_text(self._files.table, _table(pl_module.history))
        record = pl_module.history[-1]
        if self._tensorboard is not None:
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


def _table(history: Sequence[EpochRecord]) -> str:
    text = io.StringIO()
    names = [entry.name for entry in fields(EpochRecord)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, history))
    return text.getvalue()
