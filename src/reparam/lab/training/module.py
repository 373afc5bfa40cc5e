"""The Lightning module: one step, one evaluation, and the state that makes a run resumable."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.nn import functional

from reparam.errors import CheckpointError, InputError
from reparam.lab.data import Sharding, TrainLoader, eval_loader, train_loader
from reparam.lab.data._seeds import derive_seed
from reparam.lab.training.ema import WeightAverage
from reparam.lab.training.mixing import mixing_of
from reparam.lab.training.optimizers import KernelDecay, build_optimizer
from reparam.lab.training.result import EpochRecord, Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from reparam.lab.data import EvalLoader, ImageData
    from reparam.lab.training.recipe import Recipe
    from reparam.lab.training.result import OnProgress, WrapOptimizer

EVAL_BATCH = 500
"""Images of one batch in evaluation."""


class Training(pl.LightningModule):
    """A model in training.

    Nothing here depends on what was drawn before: the learning rate is a function of the step, and
    the global random state (dropout, mixup) is seeded before every batch from its coordinates.

    Args:
        model: Trained in place.
        data: What it is trained on.
        recipe: How.
        seed: Decides every random choice.
        workers: Processes that decode images.
        on_progress: Called on the first process after every batch and every epoch.
        wrap_optimizer: Makes the optimizer to step with from the recipe's and the model.

    Attributes:
        history: The records of the epochs so far.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        recipe: Recipe,
        *,
        seed: int,
        workers: int,
        on_progress: OnProgress | None,
        wrap_optimizer: WrapOptimizer | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.history: list[EpochRecord] = []
        self._data = data
        self._seed = seed
        self._workers = workers
        self._on_progress = on_progress
        self._wrap_optimizer = wrap_optimizer
        self._average = WeightAverage(model, recipe.ema.decay) if recipe.ema.decay else None
        self._kernel_decay = (
            KernelDecay(model, recipe.kernel_decay) if recipe.kernel_decay else None
        )
        self._mix = mixing_of(recipe.augment, data.num_classes)
        self._steps_since_average = 0
        self._shown: AbstractContextManager[None] = nullcontext()
        self._train_sum = torch.zeros(2, dtype=torch.float64)
        self._evaluation = torch.zeros(3, dtype=torch.float64)
        self._epoch_seconds = 0.0
        self._seconds_before = 0.0
        self._started = self._mark = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its parts."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def has_started(self) -> bool:
        """Whether a first batch was begun in this process."""
        return self._mark != self._started

    @cached_property
    def loader(self) -> TrainLoader:
        """The training batches of this process."""
        recipe, trainer = self.recipe, self.trainer
        place = (trainer.global_rank, trainer.world_size)
        return train_loader(
            self._data,
            Sharding(recipe.batch_size, *place, recipe.accumulate),
            augment=recipe.augment,
            seed=self._seed,
            workers=self._workers,
        )

    def shown_weights(self) -> dict[str, Tensor]:
        """Return the weights that are evaluated: the average where there is one."""
        return dict(self.model.state_dict()) if self._average is None else self._average.weights

    def train_dataloader(self) -> TrainLoader:
        """Return the training batches."""
        return self.loader

    def val_dataloader(self) -> EvalLoader:
        """Return the validation batches."""
        return eval_loader(
            self._data,
            self._data.validation,
            batch_size=EVAL_BATCH,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            workers=self._workers,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the recipe's optimizer; its learning rate is set before every step."""
        decayed = frozenset() if self._kernel_decay is None else self._kernel_decay.parameters
        optimizer = build_optimizer(self.model, self.recipe.optimizer, decayed)
        if self._wrap_optimizer is None:
            return optimizer
        return self._wrap_optimizer(optimizer, self.model)

    def on_fit_start(self) -> None:
        """Put the average of the weights where the weights are."""
        if self._average is not None:
            self._average.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the global random state and set the learning rate, both by the batch's place."""
        epoch = self.current_epoch
        torch.manual_seed(derive_seed(self._seed, "step", epoch, batch_idx, self.global_rank))
        rate = self.recipe.optimizer.learning_rate * self._schedule(epoch, batch_idx)
        for group in self._optimizer().param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        self._mark = time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        images, targets = self._mix(*batch)
        if self.recipe.small_first.now(*self._place(self.current_epoch, batch_idx)):
            images = _shrunk(images, self.recipe.small_first.size)
        loss = loss_of(self.recipe, self.model(images), targets)
        value = float(loss.detach())
        if not torch.isfinite(torch.tensor(value)):
            raise InputError(
                f"the loss is {value} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}: "
                "the training diverged; lower the learning rate, or use bf16 in place of fp16"
            )
        self._train_sum += torch.tensor([value * len(images), len(images)], dtype=torch.float64)
        return loss if self._kernel_decay is None else loss + self._kernel_decay(self.model)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take the step and move the average of the weights."""
        super().optimizer_step(*arguments, **options)
        # Here and not at the end of the batch: checkpoints are written before that hook is called.
        if self._average is not None:
            self._steps_since_average += 1
            if self._steps_since_average == self.recipe.ema.every:
                self._average.update(self.model)
                self._steps_since_average = 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report."""
        self._epoch_seconds += time.perf_counter() - self._mark
        self._report(batch_idx + 1, float(outputs["loss"]) * self.recipe.accumulate)

    def on_validation_epoch_start(self) -> None:
        """Forget the last evaluation and show the averaged weights, where there are any."""
        self._evaluation.zero_()
        self._shown = nullcontext() if self._average is None else self._average.shown(self.model)
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
        group = self._optimizer().param_groups[0]
        record = EpochRecord(
            epoch=self.current_epoch + 1,
            train_loss=train_loss / train_images,
            validation_loss=loss / images,
            validation_accuracy=correct / images,
            learning_rate=group["lr"] / group.get("rate", 1.0),
            train_seconds=self._epoch_seconds,
            seconds=self.seconds,
        )
        self.history.append(record)
        self._train_sum.zero_()
        self._epoch_seconds = 0.0
        self._report(len(self.loader), record.train_loss, record)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know: position, records, sums, and the averaged weights."""
        checkpoint["reparam"] = {
            "run": self._identity(),
            "position": self.loader.state_dict(),
            "history": [dict(vars(record)) for record in self.history],
            "train_sum": self._summed(self._train_sum).clone(),
            "epoch_seconds": self._epoch_seconds,
            "seconds": self.seconds,
            "average": None if self._average is None else self._average.state_dict(),
            "steps_since_average": self._steps_since_average,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from :meth:`on_save_checkpoint`."""
        state = checkpoint["reparam"]
        self._check_same_run(state["run"], checkpoint["state_dict"])
        self.loader.load_state_dict(state["position"])
        self.history = [EpochRecord(**record) for record in state["history"]]
        if self.global_rank == 0:  # the sum is that of all processes
            self._train_sum.copy_(state["train_sum"])
        self._epoch_seconds = state["epoch_seconds"]
        self._seconds_before = state["seconds"]
        if self._average is not None:
            self._average.load_state_dict(state["average"])
            self._steps_since_average = state["steps_since_average"]

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a run to go on as it would have."""
        recipe = self.recipe.to_dict()
        recipe["optimizer"]["betas"] = list(recipe["optimizer"]["betas"])
        recipe["optimizer"]["no_decay"] = list(recipe["optimizer"]["no_decay"])
        return {"recipe": recipe, "seed": self._seed, "data": self._data.fingerprint}

    def _check_same_run(self, found: dict[str, Any], weights: dict[str, Tensor]) -> None:
        needed = self._identity()
        different = [name for name in needed if found.get(name) != needed[name]]
        mine = {name: tensor.shape for name, tensor in self.state_dict().items()}
        if mine != {name: tensor.shape for name, tensor in weights.items()}:
            different.append("model")
        if different:
            raise CheckpointError(
                f"the resume checkpoint is of another run: its {', '.join(different)} differ(s); "
                "resume with what the run was started with, or start a new run in another folder"
            )

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.trainer.optimizers[0]
        return optimizer

    def _place(self, epoch: int, batch: int) -> tuple[int, int]:
        """Return the optimizer step that a batch belongs to, from 0, and their number."""
        steps = len(self.loader) // self.recipe.accumulate
        return epoch * steps + batch // self.recipe.accumulate, self.recipe.epochs * steps

    def _schedule(self, epoch: int, batch: int) -> float:
        step, total = self._place(epoch, batch)
        schedule = self.recipe.schedule
        return schedule.factor(step, total, round(schedule.warmup_share * total))

    def _summed(self, counts: Tensor) -> Tensor:
        """Return counts added up over all processes."""
        if self.trainer.world_size == 1:
            return counts
        total: Tensor = self.trainer.strategy.reduce(
            counts.to(self.device, copy=True), reduce_op="sum"
        )
        return total.cpu()

    def _report(self, step: int, loss: float, record: EpochRecord | None = None) -> None:
        if self._on_progress is not None and self.global_rank == 0:
            epoch, epochs = self.current_epoch + 1, self.recipe.epochs
            self._on_progress(Progress(epoch, epochs, step, len(self.loader), loss, record))


def loss_of(recipe: Recipe, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of logits (B, classes) for targets: (B,) labels, or (B, classes) shares."""
    smoothing = recipe.label_smoothing
    if recipe.loss == "cross_entropy":
        return functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    classes = logits.shape[1]
    shares = functional.one_hot(targets, classes) if targets.dim() == 1 else targets
    smooth = (1 - smoothing) * shares.to(logits.dtype) + smoothing / classes
    return functional.binary_cross_entropy_with_logits(logits, smooth)


def _shrunk(images: Tensor, size: int) -> Tensor:
    """Return images (B, C, H, W) whose longer side has that many pixels, if it had more."""
    height, width = images.shape[-2:]
    longer = max(height, width)
    if longer <= size:
        return images
    smaller = (max(1, round(height * size / longer)), max(1, round(width * size / longer)))
    return functional.interpolate(images, smaller, mode="bilinear", antialias=True)
