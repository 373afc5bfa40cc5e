"""The Lightning module: one optimizer step, one evaluation, and the state that makes a run resumable."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from reparam.data import TrainLoader
from reparam.data._seeds import derive_seed
from reparam.train.ema import WeightAverage
from reparam.train.optimizers import build_optimizer
from reparam.train.recipe import Recipe
from reparam.train.result import EpochRecord, OnProgress, Progress

__all__ = ["Training"]


class Training(pl.LightningModule):
    """A model in training.

    Nothing here depends on what was drawn before: the learning rate is a function of the step, and the global random
    state (dropout, mixup) is seeded before every batch from its coordinates.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        train_loader: TrainLoader,
        validation_loader: Iterable[tuple[Tensor, Tensor]],
        seed: int,
        on_progress: OnProgress | None,
    ) -> None:
        """Train `model` in place."""
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.history: list[EpochRecord] = []
        self.average = WeightAverage(model, recipe.ema.decay) if recipe.ema.decay else None
        self._train_loader = train_loader
        self._validation_loader = validation_loader
        self._seed = seed
        self._on_progress = on_progress
        self._steps_per_epoch = len(train_loader) // recipe.accumulate
        self._train_sum = torch.zeros(2, dtype=torch.float64)
        self._evaluation = torch.zeros(3, dtype=torch.float64)
        self._epoch_seconds = 0.0
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        self._mark = self._started

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its parts."""
        return self._seconds_before + time.perf_counter() - self._started

    def train_dataloader(self) -> TrainLoader:
        """Return the training batches."""
        return self._train_loader

    def val_dataloader(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the validation batches."""
        return self._validation_loader

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the recipe's optimizer; its learning rate is set before every step."""
        return build_optimizer(self.model, self.recipe.optimizer)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the global random state and set the learning rate, both from the coordinates of the batch."""
        epoch = self.current_epoch
        torch.manual_seed(derive_seed(self._seed, "step", epoch, batch_idx, self.global_rank))
        step = epoch * self._steps_per_epoch + batch_idx // self.recipe.accumulate
        rate = self.recipe.optimizer.learning_rate * self._schedule(step)
        for group in self.optimizers(use_pl_optimizer=False).param_groups:
            group["lr"] = rate
        self._mark = time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        images, labels = batch
        loss = functional.cross_entropy(
            self.model(images), labels, label_smoothing=self.recipe.label_smoothing
        )
        self._train_sum += torch.tensor(
            [loss.item() * len(images), len(images)], dtype=torch.float64
        )
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the average of the weights and report."""
        stepped = (batch_idx + 1) % self.recipe.accumulate == 0
        if self.average is not None and stepped and self.global_step % self.recipe.ema.every == 0:
            self.average.update(self.model)
        self._epoch_seconds += time.perf_counter() - self._mark
        self._report(batch_idx + 1, float(outputs["loss"]) * self.recipe.accumulate)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation and show the averaged weights, where there are any."""
        self._evaluation.zero_()
        self._shown = nullcontext() if self.average is None else self.average.applied(self.model)
        self._shown.__enter__()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add up loss, correct answers and images."""
        images, labels = batch
        logits = self.model(images).float()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(dim=1) == labels).sum()
        counts = [loss.item(), correct.item(), len(images)]
        self._evaluation += torch.tensor(counts, dtype=torch.float64)

    def on_validation_epoch_end(self) -> None:
        """Close the epoch's record."""
        self._shown.__exit__(None, None, None)
        loss, correct, images = self._summed(self._evaluation).tolist()
        train_loss, train_images = self._summed(self._train_sum).tolist()
        record = EpochRecord(
            epoch=self.current_epoch + 1,
            train_loss=train_loss / train_images,
            validation_loss=loss / images,
            validation_accuracy=correct / images,
            learning_rate=float(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]),
            train_seconds=self._epoch_seconds,
            seconds=self.seconds,
        )
        self.history.append(record)
        self._train_sum.zero_()
        self._epoch_seconds = 0.0
        self._report(len(self._train_loader), record.train_loss, record)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know: position, records, sums, and the average of the weights."""
        checkpoint["reparam"] = {
            "position": self._train_loader.state_dict(),
            "history": [vars(record) for record in self.history],
            "train_sum": self._train_sum,
            "epoch_seconds": self._epoch_seconds,
            "seconds": self.seconds,
            "average": None if self.average is None else self.average.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from :meth:`on_save_checkpoint`."""
        state = checkpoint["reparam"]
        self._train_loader.load_state_dict(state["position"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        self._train_sum.copy_(state["train_sum"])
        self._epoch_seconds = state["epoch_seconds"]
        self._seconds_before = state["seconds"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def shown_weights(self) -> dict[str, Tensor]:
        """Return the weights that are evaluated: the average where there is one, else the model's own."""
        return dict(self.model.state_dict()) if self.average is None else self.average.weights

    def _schedule(self, step: int) -> float:
        recipe = self.recipe
        warmup = round(recipe.schedule.warmup_epochs * self._steps_per_epoch)
        return recipe.schedule.factor(step, recipe.epochs * self._steps_per_epoch, warmup)

    def _summed(self, counts: Tensor) -> Tensor:
        """Return counts added up over all processes."""
        if self.trainer.world_size == 1:
            return counts
        total: Tensor = self.trainer.strategy.reduce(counts.to(self.device), reduce_op="sum").cpu()
        return total

    def _report(self, step: int, loss: float, record: EpochRecord | None = None) -> None:
        if self._on_progress is not None and self.global_rank == 0:
            steps = len(self._train_loader)
            epochs = self.recipe.epochs
            self._on_progress(Progress(self.current_epoch + 1, epochs, step, steps, loss, record))
