"""What was asked for, and what of it can be found wrong before data are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from reparam._support.optional import available
from reparam.branching import kinds
from reparam.cli.options import MOST_PROCESSES, ModelOptions
from reparam.deploy.engines import get_engine
from reparam.deploy.exporting import formats
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TrainRequest", "overrides"]

_MOST_SEED = (1 << 63) - 1
"""What PyTorch's generators take."""
_ACCELERATORS = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class TrainRequest(ModelOptions):
    """One run: the options of ``reparam train``."""

    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="digits, an ImageFolder directory or zip, torchvision:NAME, or shards (*.tar).",
        ),
    ]
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Any MODEL; if left out the recipe's own, or a small RepVGG.",
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME",
            help="A recipe by its name, as digits, or a TOML file.",
        ),
    ] = None
    branch: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Widen MODEL by a kind of branching, as repvgg."),
    ] = None
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the run.")
    ] = Path("reparam-run")
    validation: Annotated[
        str | None, typer.Option(metavar="DATA", help="A second source of the same kind.")
    ] = None
    input_size: Annotated[
        int | None,
        typer.Option(
            "--input-size", "--size", metavar="PIXELS", min=1, help="Side of the images MODEL sees."
        ),
    ] = None
    epochs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Instead of the recipe's.")
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images a step, over all processes.")
    ] = None
    precision: Annotated[
        str | None, typer.Option(metavar="P", help="auto, fp32, bf16 or fp16.")
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace any value of the recipe."),
    ] = None
    seed: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=_MOST_SEED, help="Decides all that is random."),
    ] = 0
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in FOLDER, if there is one.")
    ] = False
    save_every_steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Checkpoint within an epoch too."),
    ] = None
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write TensorBoard events beside the CSV table."),
    ] = False
    workers: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=MOST_PROCESSES, help="Processes that decode images."),
    ] = 0
    accelerator: Annotated[str, typer.Option(metavar="A", help="auto, cpu, cuda or mps.")] = "auto"
    devices: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=MOST_PROCESSES, help="Processes on each machine."),
    ] = 1
    nodes: Annotated[int, typer.Option(metavar="N", min=1, help="Machines.")] = 1
    sync_batchnorm: Annotated[
        bool,
        typer.Option("--sync-batchnorm", help="Batch statistics over all processes (GPUs)."),
    ] = False
    online: Annotated[
        bool | None,
        typer.Option(
            "--online/--no-online",
            help="Merge branches while training, exactly; if left out, where that is faster.",
        ),
    ] = None
    online_compile: Annotated[
        bool,
        typer.Option(
            "--online-compile", help="Compile what does not merge, too (seconds; a C++ compiler)."
        ),
    ] = False
    exports: Annotated[
        list[str] | None,
        typer.Option(
            "--export", metavar="FILE", help="Export to FOLDER/FILE; deploy.onnx if left out."
        ),
    ] = None
    deploy: Annotated[
        str,
        typer.Option(metavar="W", help="Fuse the best epoch on validation, or the last."),
    ] = "best"

    def __post_init__(self) -> None:
        """Refuse what no run can begin with.

        Raises:
            InputError: a value is unknown, or `out` holds another run.
            MissingExtraError: the engine of an export is not installed.
        """
        _told = self.checkpoint, self.changes  # each says what is wrong with it
        if self.branch is not None and self.branch not in kinds():
            raise InputError(f"--branch {self.branch!r} is no kind; give {', '.join(kinds())}")
        if self.accelerator not in _ACCELERATORS:
            known = ", ".join(_ACCELERATORS)
            raise InputError(f"--accelerator {self.accelerator!r} is unknown; give one of {known}")
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise InputError("--accelerator cuda: PyTorch finds no such GPU here; give cpu or auto")
        if self.online_compile and self.online is False:
            raise InputError(
                "--online-compile compiles passes of merged blocks, and --no-online merges none; "
                "leave one of them out"
            )
        for name in self.exports or ():
            _check_export(name)

    def check_folder(self) -> None:
        """Refuse to write over an earlier run; called by one process of a distributed run only.

        Raises:
            InputError: there is one in `out`, or `out` would be taken for a class of the data.
        """
        data, out = Path(self.data), self.out.resolve()
        if data.is_dir() and out.is_relative_to(data.resolve()):
            raise InputError(
                f"{self.out} lies in the data, of which it would become a class; choose another "
                "--out, outside of it"
            )
        if (self.out / "resume.ckpt").exists() and not self.resume:
            raise InputError(
                f"{self.out} holds an earlier run; go on with it (--resume) or choose another --out"
            )

    @property
    def changes(self) -> dict[str, Any]:
        """Values of the recipe to replace, by their names with double underscores.

        Raises:
            InputError: a setting is not of the form NAME=VALUE.
        """
        return overrides(self.settings or (), self.epochs, self.batch_size, self.precision)

    @property
    def export_names(self) -> tuple[str, ...]:
        """The files to export: those asked for, else ONNX where it can be written and checked."""
        if self.exports:
            return tuple(self.exports)
        needed = ("onnx", "onnxscript", "onnxruntime")
        return ("deploy.onnx",) if all(map(available, needed)) else ()


def _check_export(name: str) -> None:
    if Path(name).name != name:
        raise InputError(f"--export {name!r}: give a file name; it is written into --out")
    entries = [entry for entry in formats() if entry.suffix == Path(name).suffix.lower()]
    if not entries:
        known = ", ".join(dict.fromkeys(entry.suffix for entry in formats()))
        raise InputError(f"--export {name!r} has a suffix that names no format; use one of {known}")
    get_engine(entries[0].engine).require()


def overrides(
    settings: Sequence[str], epochs: int | None, batch_size: int | None, precision: str | None
) -> dict[str, Any]:
    """Read ``optimizer.learning_rate=0.2`` and the options that stand for the usual ones.

    >>> overrides(["optimizer.learning_rate=0.2", "optimizer.kind=adamw"], 3, None, None)
    {'optimizer__learning_rate': 0.2, 'optimizer__kind': 'adamw', 'epochs': 3}

    Raises:
        InputError: a setting is not of that form.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise InputError(
                f"--set {setting!r}: give NAME=VALUE, as in optimizer.learning_rate=0.2"
            )
        found[name.strip().replace(".", "__")] = _value(value.strip())
    usual = {"epochs": epochs, "batch_size": batch_size, "precision": precision}
    return found | {name: value for name, value in usual.items() if value is not None}


def _value(text: str) -> Any:
    """A number, a truth value, a list, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
