"""``reparam train``: train wide, and end with the straight net, compared and exported."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import reparam
from reparam._support.optional import available, require
from reparam.cli import small
from reparam.cli.groups import command
from reparam.cli.options import Inputs, JsonOption, Target
from reparam.cli.targets import build, pruned_note, sized, with_weights
from reparam.cli.telling import megabytes
from reparam.cli.terminal import Terminal
from reparam.cli.train_options import HardwareOptions, RunOptions, TrainOptions
from reparam.errors import InputError
from reparam.lab.data import ImageData, open_data
from reparam.report.numbers import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from reparam.lab.training import Deployment, Progress, TrainResult

_SMALL = 64
"""Up to this side in pixels, images get a net and a recipe for small ones."""
_DIGITS_SIZE = 16
"""The digits are 8 pixels wide; a net of three resolutions wants a few more."""


@dataclass(frozen=True, eq=False)
class _Finished:
    """What a run came to."""

    model: Target
    data: ImageData
    recipe: str
    result: TrainResult
    deployment: Deployment


def train(
    *,
    request: TrainOptions,
    how: RunOptions,
    hardware: HardwareOptions,
    as_json: JsonOption = False,
) -> None:
    """Train MODEL on DATA, fuse it, show that nothing changed, and export it.

    Several processes: torchrun or SLURM start them; give --devices and --nodes as they do.
    """
    terminal = Terminal(as_json=as_json)
    finished = _run(request, how, hardware, terminal)
    if finished is not None:
        terminal.json(_as_dict(request, finished))
        _tell(terminal, request, finished)


def _run(
    request: TrainOptions, how: RunOptions, hardware: HardwareOptions, terminal: Terminal
) -> _Finished | None:
    """Train, fuse, compare and export; None in every process of a distributed run but the first."""
    require("lightning", extra="train", purpose="Training")
    from reparam.lab.training import Hardware, finish, load_recipe, train

    first = _is_first_process()
    if first:
        request.check_folder(resume=how.resume)
    data = _open(request, terminal)
    recipe_name = request.recipe or _default_recipe(data)
    recipe = load_recipe(recipe_name)
    model_name = request.model or recipe.model or _default_model(data)
    recipe = recipe.override(**request.changes) if request.changes else recipe
    target = sized(request.target(model_name), data)
    model = _build(target, request, how.seed)
    with _stop_told(terminal), terminal.progress("Training") as update:
        result = train(
            model,
            data,
            recipe=recipe,
            out=request.out,
            on_progress=_teller(update, terminal) if first else None,
            hardware=Hardware(**vars(hardware)),
            **vars(how),
        )
    if not first:
        return None
    with terminal.progress("Fusing, comparing, exporting"):
        deployment = finish(
            result,
            data,
            out=request.out,
            exports=request.export_names,
            source=model_name,
            weights=request.deploy,
            notes=pruned_note(request.weights),
        )
    return _Finished(target, data, recipe_name, result, deployment)


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


def _open(request: TrainOptions, terminal: Terminal) -> ImageData:
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


def _build(target: Target, request: TrainOptions, seed: int) -> nn.Module:
    """The model with its weights and branches as asked for."""
    model = build(target, seed)
    if target.weights is not None:
        model, _ = with_weights(model, target, Inputs())
    if request.branch is None:
        return model
    # A trained net keeps what it computes; a fresh one gets the blocks of the papers.
    if target.weights is not None:
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


def _tell(terminal: Terminal, request: TrainOptions, finished: _Finished) -> None:
    """Print accuracy, what fusing did, the files, and what can be done next."""
    result, deployed = finished.result, finished.deployment
    data, epochs = finished.data, len(result.history)
    branch = f" with {request.branch} branches" if request.branch else ""
    title = f"Trained {finished.model.name}{branch} on {data.name}"
    terminal.table(title, ("", *_columns(finished)), _accuracies(finished))
    precision = result.recipe.precision
    told = "" if precision == "fp32" else " (the accuracies of the epochs too; those above in fp32)"
    terminal.text(
        f"  recipe {finished.recipe} in {precision}{told}, {epochs} epochs in "
        f"{result.seconds:.0f} s"
    )
    if result.online is not None:
        took = result.online.compile_seconds
        compiled = "" if took is None else f", with passes compiled in {took:.0f} s"
        terminal.text(f"  {result.online.blocks} blocks trained as one convolution each{compiled}")
    terminal.text()
    same = deployed.images - deployed.different
    terminal.done(
        f"Fused: {len(deployed.plan.regions)} regions, {count(deployed.parameters_before)} "
        f"parameters became {count(deployed.parameters_after)}; the same class on {same:,} of "
        f"{deployed.images:,} validation images, largest difference {deployed.verdict.max_abs:.1e}"
    )
    if deployed.plan.refusals:
        terminal.hint("Note:", f"{len(deployed.plan.refusals)} places were left as found")
    for written in deployed.exports:
        terminal.done(
            f"Wrote {written.path} ({megabytes(written.size_bytes)}), read back in "
            f"{written.engine}: largest difference {written.parity.max_abs:.1e}"
        )
    terminal.done(
        f"Weights in {request.out}: {deployed.weights.name} (fused), {result.best.name} and "
        f"{result.last.name} (train form)"
    )
    for words in _next(request, finished):
        terminal.hint("Next:", command(*words))


def _columns(finished: _Finished) -> list[str]:
    last = len(finished.result.history)
    if finished.deployment.epoch == last:
        return [f"epoch {last}, deployed"]
    return [f"epoch {finished.deployment.epoch}, deployed", f"epoch {last}, the last"]


def _accuracies(finished: _Finished) -> list[list[str]]:
    """Of what is deployed, and beside it of the last epoch where that is another."""
    result, deployed, data = finished.result, finished.deployment, finished.data
    rows = [("validation accuracy", deployed.accuracy, result.validation_accuracy, data.validation)]
    if data.test is not None:
        test = (deployed.test_accuracy or 0.0, result.test_accuracy or 0.0)
        rows.append(("test accuracy", *test, data.test))
    width = len(_columns(finished))
    return [
        [what, *(_percent(share, len(split)) for share in (mine, last)[:width])]
        for what, mine, last, split in rows
    ]


def _percent(share: float, images: int) -> str:
    return f"{100 * share:.2f} % of {images:,}"


def _next(request: TrainOptions, finished: _Finished) -> list[list[str]]:
    """Commands that work as they stand: eight bits, fewer channels, times, a page."""
    deployed, out = finished.deployment, request.out
    size = ["--input-size", str(finished.data.image_shape[-1])]
    target = finished.model.holding(deployed.weights)
    data = ["--data", request.data, *size]
    if request.validation is not None:
        data += ["--validation", request.validation]
    commands = [
        ["prune", *target.words(), *data, "--macs", "0.5", "-o", str(out / "pruned.safetensors")],
        ["report", str(out / "result.json")],
    ]
    if all(map(available, ("onnx", "onnxruntime"))):
        int8 = str(out / "deploy-int8.onnx")
        page = ["--report", str(out / "deploy-int8.html")] if available("jinja2") else []
        commands.insert(0, ["quantize", *target.words(), *data, "-o", int8, *page])
    timed = [export for export in deployed.exports if export.path.suffix != ".safetensors"]
    timed_as = [str(timed[0].path), "--engines", timed[0].engine] if timed else target.words()
    return [*commands, ["bench", *timed_as, *size]]


def _as_dict(request: TrainOptions, finished: _Finished) -> dict[str, Any]:
    """The outcome for a program."""
    return {
        "model": finished.model.name,
        "branch": request.branch,
        "data": finished.data.name,
        "training": finished.result.to_dict(),
        "deployment": finished.deployment.to_dict(),
    }
