"""One training run, from a model and data to a :class:`TrainResult`."""

from __future__ import annotations

import json
import logging
import os
import platform
import warnings
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch

from reparam._support.arguments import FLAG, FUNCTION, MODULE, NONE, PATH, a, takes, whole
from reparam._support.files import write_text
from reparam.branching.online import online as online_form
from reparam.branching.online import online_plan
from reparam.errors import CheckpointError, InputError, ReparamError
from reparam.frontends.torch.copying import own_copy
from reparam.lab.data import ImageData, eval_loader
from reparam.lab.training.callbacks import KeepRun, RunFiles, save_weights
from reparam.lab.training.module import EVAL_BATCH, Training
from reparam.lab.training.preflight import (
    check_disk,
    check_hardware,
    check_model,
    resolve_precision,
)
from reparam.lab.training.recipe import Recipe, load_recipe
from reparam.lab.training.result import (
    Hardware,
    OnlineRun,
    OnProgress,
    TrainResult,
    WrapOptimizer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from reparam.lab.data import Split

_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}

_FITTED_IMAGES = 2000


@runtime_checkable
class FitsData(Protocol):
    """A model that has something to learn from images before training, once."""

    def fit_data_(self, images: Tensor) -> object:
        """Set what depends on the data, unless that was done before."""
        ...


@takes(
    model=MODULE,
    data=a("the data that reparam.lab.data.open_data opens", ImageData),
    recipe=PATH | a("a Recipe", Recipe),
    out=PATH,
    seed=whole(0),
    on_progress=FUNCTION | NONE,
    progress_bar=FLAG,
    resume=FLAG,
    save_every_steps=whole(1) | NONE,
    tensorboard=FLAG,
    workers=whole(0),
    wrap_optimizer=FUNCTION | NONE,
    hardware=a("a Hardware", Hardware) | NONE,
    online=FLAG | NONE,
    online_compile=FLAG,
)
def train(  # noqa: PLR0913 - one keyword for each independent choice
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
    tensorboard: bool = False,
    workers: int = 0,
    wrap_optimizer: WrapOptimizer | None = None,
    hardware: Hardware | None = None,
    online: bool | None = False,
    online_compile: bool = False,
) -> TrainResult:
    """Train a copy of a model.

    Args:
        model: Any classifier of images of `data.image_shape`; it is not changed.
        data: From :func:`reparam.lab.data.open_data`.
        recipe: A recipe, the name of one that the package brings, or the path of a TOML file.
        out: Folder for checkpoints and records, made if need be.
        seed: Decides every random choice of the run; the model's initial weights are the caller's.
        on_progress: Called with a :class:`Progress` after every batch and every epoch.
        progress_bar: Show Lightning's own progress bar.
        resume: Go on from the folder's resume checkpoint, where there is one.
        save_every_steps: Write that checkpoint also every so many optimizer steps within an epoch.
        tensorboard: Write TensorBoard events beside the CSV table.
        workers: Processes that decode images, on each process of the run.
        wrap_optimizer: Makes the optimizer to step with from the recipe's and the model in
            training, for example ``lambda base, net: RepOptimizer(base, net, scales)``.
        hardware: Devices, processes and machines; one device of the best kind when None.
        online: Run blocks of branches as one convolution with exact batch statistics (see
            :func:`reparam.online`), which changes nothing but the time; None: where
            :func:`reparam.online_plan` says that it is faster. What is handed back and written
            is the model with its branches.
        online_compile: Compute what does not merge in compiled passes, too: `compile=True` of
            :func:`reparam.online`, which takes seconds and a C++ compiler.

    Returns:
        The trained model and its records. The same model, seed, recipe, data and number of
        processes on the same machine and number of threads give the same weights, bit for bit,
        also when the run is killed and resumed.

    Raises:
        InputError: Recipe, model, data and hardware do not fit together, the disk is full, or the
            training diverged.
        CheckpointError: `resume` finds the checkpoint of another run, or a broken one.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from reparam.lab.data import open_data
        >>> data = open_data("digits")
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(
        ...         model, data, recipe=load_recipe("digits").override(epochs=2), out=folder
        ...     )
        >>> result.accuracy > 0.5, len(result.history)
        (True, 2)
    """
    machine = hardware or Hardware()
    files = RunFiles(Path(out))
    checkpoint = files.resume if resume and files.resume.exists() else None
    chosen = resolve_precision(load_recipe(recipe), machine, checkpoint)
    check_model(model, data)
    check_hardware(chosen, machine)
    with _folder_of(files), _quiet():
        check_disk(model, chosen, files)
        working = _working_copy(model, data)
        merged = None
        if online is not False:
            working, merged = _merged(
                working, data, chosen, always=online is True, compiles=online_compile
            )
        trainer = _trainer(chosen, files, machine, progress_bar, save_every_steps, tensorboard)
        training = Training(
            working,
            data,
            chosen,
            seed=seed,
            workers=workers,
            on_progress=on_progress,
            wrap_optimizer=wrap_optimizer,
        )
        _fit(trainer, training, checkpoint)
    return _conclude(training, data, files, seed, merged)


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageData, split: Split) -> float:
    """Return the share of a split that a model in eval mode classifies correctly, 0 to 1."""
    correct = 0
    device = next(model.parameters()).device
    for images, labels in eval_loader(data, split, batch_size=EVAL_BATCH):
        correct += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
    return correct / len(split)


def _working_copy(model: nn.Module, data: ImageData) -> nn.Module:
    """Return a copy in training mode, set to the data where it can be, with contiguous weights.

    On the CPU, torch 2.14.1 crashes in the backward pass of a strided 1x1 convolution of three
    channels in channels_last, which is the stem of RepVGG.
    """
    working = own_copy(model).to(memory_format=torch.contiguous_format)
    if isinstance(working, FitsData):
        working.fit_data_(data.sample(_FITTED_IMAGES)[0])
    return working.train()


def _merged(
    model: nn.Module, data: ImageData, recipe: Recipe, *, always: bool, compiles: bool
) -> tuple[nn.Module, OnlineRun | None]:
    """Merge the blocks of a model for training; where nothing merges, it stays as it is.

    Raises:
        UnsupportedModelError: It cannot be read, and `always` asks for it, or its passes cannot be
            compiled here.
    """
    example = torch.empty(recipe.batch_size, *data.image_shape, device="meta")
    try:
        plan = online_plan(model, example, compile=compiles)
    except ReparamError:
        if always:
            raise
        return model, None
    if not plan.is_faster:
        return model, None
    merged = plan.apply()
    return merged, OnlineRun(len(plan.blocks), plan.compile_seconds if compiles else None)


@contextmanager
def _folder_of(files: RunFiles) -> Iterator[None]:
    """Make the folder of a run, and take it away again if nothing got into it."""
    folder = files.folder.absolute()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the output folder {files.folder} cannot be made ({error.strerror}); choose another"
        ) from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # of the first that holds something
            for path in made:
                path.rmdir()
        raise


def _trainer(
    recipe: Recipe,
    files: RunFiles,
    machine: Hardware,
    progress_bar: bool,  # noqa: FBT001 - passed on
    save_every_steps: int | None,
    tensorboard: bool,  # noqa: FBT001 - passed on
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.nodes,
        strategy=machine.strategy,
        sync_batchnorm=machine.sync_batchnorm,
        max_epochs=recipe.epochs,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.gradient_clip or None,
        precision=_PRECISIONS[recipe.precision],
        callbacks=[KeepRun(files, save_every_steps, tensorboard=tensorboard)],
        logger=False,
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=files.folder,
    )


def _fit(trainer: pl.Trainer, training: Training, checkpoint: Path | None) -> None:
    with torch.random.fork_rng():  # the caller's random state is left as it was
        if checkpoint is None:
            trainer.fit(training)
            return
        try:
            trainer.fit(training, ckpt_path=checkpoint, weights_only=True)
        except (EOFError, KeyError, OSError, RuntimeError, UnpicklingError) as error:
            if isinstance(error, CheckpointError) or training.has_started:
                raise
            raise CheckpointError(
                f"{checkpoint} cannot be resumed from ({error}); delete it to start anew"
            ) from error


def _conclude(
    training: Training, data: ImageData, files: RunFiles, seed: int, merged: OnlineRun | None
) -> TrainResult:
    weights = training.shown_weights()
    model = online_form(training.model.cpu(), enabled=False)
    model.load_state_dict(weights)
    model.zero_grad(set_to_none=True)
    model.eval()
    accuracies = [record.validation_accuracy for record in training.history]
    result = TrainResult(
        model=model,
        history=tuple(training.history),
        validation_accuracy=_last_accuracy(training, model, data),
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
        images={name: len(split) for name, split in data.splits()},
        online=merged,
    )
    if training.global_rank == 0:
        save_weights(model.state_dict(), files.last)
        write_text(files.result, json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _last_accuracy(training: Training, model: nn.Module, data: ImageData) -> float:
    """Return the accuracy of the final weights in float32, whatever the run's precision was."""
    if training.recipe.precision == "fp32":
        return training.history[-1].validation_accuracy
    return accuracy(model, data, data.validation)


def _environment() -> dict[str, str | int]:
    packages: dict[str, Any] = {name: version(name) for name in ("torch", "lightning")}
    return {
        "python": platform.python_version(),
        **packages,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count() or 1,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notices off the terminal; warnings that a user can act on stay."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            r".*isinstance\(treespec, LeafSpec\).*",
            ".*GPU available but not used.*",
            ".*Checkpoint directory .* exists and is not empty.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            logger.setLevel(level)
