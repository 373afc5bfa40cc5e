"""One training run, from a model and data to a :class:`TrainResult`."""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from reparam._files import write_text
from reparam.data import ArrayTrainLoader, EvalLoader, ImageData, Sharding, Split
from reparam.errors import InputError
from reparam.train.checkpoints import RunFiles, SaveRun, load_weights, save_weights
from reparam.train.module import Training
from reparam.train.recipe import Recipe, load_recipe
from reparam.train.result import OnProgress, TrainResult

__all__ = ["accuracy", "train"]

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def train(
    model: nn.Module,
    data: ImageData,
    *,
    recipe: Recipe | str | Path,
    out: str | Path,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    progress_bar: bool = False,
    resume: bool = False,
    save_every_steps: int | None = None,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
) -> TrainResult:
    """Train a copy of a model.

    Args:
        model: Any classifier of images of `data.image_shape`; it is not changed.
        data: From :func:`reparam.data.open_data`.
        recipe: A recipe, the name of one that the package brings, or the path of a TOML file.
        out: Folder for checkpoints and records, made if need be.
        seed: Decides every random choice of the run but the model's initial weights, which are the caller's.
        on_progress: Called after every step and every epoch with a :class:`Progress`.
        progress_bar: Show Lightning's own progress bar.
        resume: Go on from the folder's resume checkpoint, where there is one.
        save_every_steps: Also write the resume checkpoint every so many optimizer steps within an epoch.
        accelerator: Lightning's name of the kind of device.
        devices: Number of processes on this machine (with torchrun or SLURM: on each machine).
        num_nodes: Number of machines.

    Returns:
        The trained model and its records. The same seed, recipe, data and number of processes on the same machine
        give the same weights, bit for bit, also when the run was killed and resumed.

    Raises:
        InputError: The recipe, the model and the data do not fit together, or the disk is full.
    """
    chosen = load_recipe(recipe)
    files = RunFiles(Path(out))
    files.folder.mkdir(parents=True, exist_ok=True)
    _check_model(model, data)
    with _quiet():
        working = copy.deepcopy(model).train()
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            max_epochs=chosen.epochs,
            accumulate_grad_batches=chosen.accumulate,
            gradient_clip_val=chosen.gradient_clip or None,
            precision=_PRECISION[chosen.precision],
            callbacks=[SaveRun(files, save_every_steps)],
            logger=False,
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=files.folder,
        )
        sharding = Sharding(
            chosen.batch_size, trainer.global_rank, trainer.world_size, chosen.accumulate
        )
        training = Training(
            working,
            chosen,
            train_loader=ArrayTrainLoader(data, sharding, augment=chosen.augment, seed=seed),
            validation_loader=EvalLoader(
                data, data.validation, 500, rank=trainer.global_rank, world_size=trainer.world_size
            ),
            seed=seed,
            on_progress=on_progress,
        )
        checkpoint = files.resume if resume and files.resume.exists() else None
        with torch.random.fork_rng():
            trainer.fit(training, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return _finish(training, data, files, seed)


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageData, split: Split) -> float:
    """Return the share of a split that a model in eval mode classifies correctly, 0 to 1."""
    correct = 0
    device = next(model.parameters()).device
    for images, labels in EvalLoader(data, split, 500):
        correct += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
    return correct / len(split)


def _finish(training: Training, data: ImageData, files: RunFiles, seed: int) -> TrainResult:
    model = training.model.cpu()
    model.load_state_dict(training.shown_weights())
    model.zero_grad(set_to_none=True)
    model.eval()
    save_weights(dict(model.state_dict()), files.last)
    accuracies = [record.validation_accuracy for record in training.history]
    result = TrainResult(
        model=model,
        history=tuple(training.history),
        validation_accuracy=accuracies[-1],
        test_accuracy=None if data.test is None else accuracy(model, data, data.test),
        best_epoch=accuracies.index(max(accuracies)) + 1,
        best=files.best,
        last=files.last,
        resume=files.resume,
        seconds=training.seconds,
        recipe=training.recipe,
        seed=seed,
        data_fingerprint=data.fingerprint,
        environment=_environment(),
    )
    write_text(files.result, json.dumps(result.to_dict(), indent=2) + "\n")
    return result


@torch.no_grad()
def _check_model(model: nn.Module, data: ImageData) -> None:
    """Find out before the first epoch whether the model takes these images and knows these classes."""
    probe = copy.deepcopy(model).cpu().eval()
    shape = (2, *data.image_shape)
    try:
        logits = probe(torch.zeros(shape))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the model does not take images of shape {data.image_shape} as {data.name} has them "
            f"({error}); choose another image size or another model"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, data.num_classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"the model returns {found} for 2 images of {data.name}; needed (2, {data.num_classes}), one value for "
            f"each class: build the model with num_classes={data.num_classes}"
        )


def _environment() -> dict[str, str | int]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": pl.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count() or 1,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notices off the terminal; its warnings and errors stay."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        try:
            yield
        finally:
            logger.setLevel(level)
