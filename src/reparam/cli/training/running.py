"""Read the data, build the model, train it, and turn it into what is deployed."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import reparam
from reparam._support.optional import require
from reparam.cli import small
from reparam.cli.notes import warnings_noted
from reparam.cli.targets import Inputs, Target, build, pruned_note, sized, with_weights
from reparam.errors import InputError
from reparam.lab.data import ImageData, open_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from reparam.cli.terminal import Terminal
    from reparam.cli.training.request import TrainRequest
    from reparam.lab.training import Deployment, Progress, TrainResult

__all__ = ["Finished", "run"]

_SMALL = 64
"""Up to this side in pixels, images get a net and a recipe for small ones."""

_DIGITS_SIZE = 16
"""The digits are 8 pixels wide; a net of three resolutions wants a few more."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What a run came to."""

    model: Target
    branch: str | None
    data: ImageData
    recipe: str
    result: TrainResult
    deployment: Deployment


def run(request: TrainRequest, terminal: Terminal) -> Finished | None:
    """Train, fuse, compare and export; None in every process of a distributed run but the first.

    Raises:
        InputError: model, data, recipe and machine do not fit together.
        MissingExtraError: a package is not installed.
        VerificationError: the fused model differs.
        ExportError: an export failed.
    """
    require("lightning", extra="train", purpose="Training")
    from reparam.lab.training import Hardware, finish, load_recipe, train

    first = _is_first_process()
    if first:
        request.check_folder()
    data = _open(request, terminal)
    recipe_name = request.recipe or _default_recipe(data)
    recipe = load_recipe(recipe_name)
    model_name = request.model or recipe.model or _default_model(data)
    recipe = recipe.override(**request.changes) if request.changes else recipe
    target = sized(Target(model_name, request.checkpoint, request.num_classes), data)
    model = _build(target, request)
    told = terminal.progress("Training")
    with _stop_told(terminal), warnings_noted(terminal), told as update:
        result = train(
            model,
            data,
            recipe=recipe,
            out=request.out,
            seed=request.seed,
            on_progress=_teller(update, terminal) if first else None,
            resume=request.resume,
            save_every_steps=request.save_every_steps,
            tensorboard=request.tensorboard,
            workers=request.workers,
            online=request.online,
            online_compile=request.online_compile,
            hardware=Hardware(
                accelerator=request.accelerator,
                devices=request.devices,
                nodes=request.nodes,
                sync_batchnorm=request.sync_batchnorm,
            ),
        )
    if not first:
        return None
    with terminal.progress("Fusing, comparing, exporting"), warnings_noted(terminal):
        deployment = finish(
            result,
            data,
            out=request.out,
            exports=request.export_names,
            source=model_name,
            weights=request.deploy,
            notes=pruned_note(None if request.checkpoint is None else request.checkpoint.path),
        )
    return Finished(target, request.branch, data, recipe_name, result, deployment)


@contextmanager
def _stop_told(terminal: Terminal) -> Iterator[None]:
    """Tell of a run that was stopped, and let its exit code say so.

    Lightning turns Ctrl-C and SIGTERM into a silent SystemExit, that of SIGTERM with exit code 0:
    to a scheduler the run would have ended well.
    """
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    # Lightning ends a run between two batches, if nobody else takes the signal first.
    former = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    try:
        yield
    except SystemExit as stop:
        terminal.error("stopped; the same command with --resume goes on from its last checkpoint")
        number = signal.SIGTERM if isinstance(stop, SIGTERMException) else signal.SIGINT
        raise SystemExit(128 + number) from stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _is_first_process() -> bool:
    """Whether this process of a distributed run is the one that talks and writes."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next(filter(None, ranks), "0")) == 0


def _open(request: TrainRequest, terminal: Terminal) -> ImageData:
    size = request.input_size
    if request.data == "digits" and size is None:
        size = _DIGITS_SIZE
    with terminal.progress(f"Opening {request.data}"):
        return open_data(request.data, validation=request.validation, image_size=size)


def _default_model(data: ImageData) -> str:
    if _side(data) <= _SMALL:
        return small.NAME
    raise InputError(
        f"the images of {data.name} are {_side(data)} pixels wide, and without --model only images "
        f"of up to {_SMALL} pixels have a net of their own; give --model, as in --model repvgg_a0, "
        "or make the images smaller with --size"
    )


def _default_recipe(data: ImageData) -> str:
    if data.name == "digits":
        return "digits"
    return "cifar10-fast" if _side(data) <= _SMALL else "imagenet-repvgg"


def _side(data: ImageData) -> int:
    return max(data.image_shape[1:])


def _build(target: Target, request: TrainRequest) -> nn.Module:
    """The model with its weights and branches as asked for."""
    model = build(target, request.seed)
    if target.checkpoint is not None:
        model, _ = with_weights(model, target.checkpoint, Inputs())
    if request.branch is None:
        return model
    # A trained net keeps what it computes; a fresh one gets the blocks of the papers.
    if target.checkpoint is not None:
        return reparam.branch(model.eval(), request.branch)
    return reparam.branch(model, request.branch, norms="absorb", init="fresh")


def _teller(
    update: Callable[[float, float, str], None], terminal: Terminal
) -> Callable[[Progress], None]:
    """A bar on a terminal; in a log, a line an epoch."""

    def tell(progress: Progress) -> None:
        done = progress.epoch - 1 + progress.step / progress.steps
        update(done, progress.epochs, f"epoch {progress.epoch} of {progress.epochs}")
        record = progress.record
        if record is not None:
            terminal.note(
                f"epoch {record.epoch:>3} of {progress.epochs}: loss {record.train_loss:.3f}, "
                f"validation {100 * record.validation_accuracy:.2f} %, {record.seconds:.0f} s"
            )

    return tell
