"""What was asked of a training, and what of it can be found wrong before data are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.optional import available
from reparam.branching import kinds
from reparam.cli.groups import option
from reparam.cli.options import MOST_PROCESSES, ModelOptions, check_format
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_SEED = (1 << 63) - 1
"""What PyTorch's generators take."""
_ACCELERATORS = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ModelOptions):
    """What is trained, on what, and what becomes of it."""

    data: str = option(
        "digits, an ImageFolder directory or zip, torchvision:NAME, or shards (*.tar).",
        "DATA", flags=("--data", "-d"), default=...,
    )  # fmt: skip
    model: str | None = option(
        "Any MODEL; if left out the recipe's own, or a small RepVGG.",
        "MODEL", flags=("--model", "-m"),
    )  # fmt: skip
    recipe: str | None = option(
        "A recipe by its name, as digits, or a TOML file.", "NAME", flags=("--recipe", "-r")
    )
    branch: str | None = option("Widen MODEL by a kind of branching, as repvgg.", "KIND")
    out: Path = option(
        "Folder of the run.", "FOLDER", flags=("--out", "-o"), default=Path("reparam-run")
    )
    validation: str | None = option("A second source of the same kind.", "DATA")
    input_size: int | None = option(
        "Side of the images MODEL sees.", "PIXELS", flags=("--input-size", "--size"), min=1
    )
    epochs: int | None = option("Instead of the recipe's.", "N", min=1)
    batch_size: int | None = option("Images a step, over all processes.", "N", min=1)
    precision: str | None = option("auto, fp32, bf16 or fp16.", "P")
    settings: list[str] | None = option(
        "Replace any value of the recipe.", "NAME=VALUE", flags=("--set",)
    )
    exports: list[str] | None = option(
        "Export to FOLDER/FILE; deploy.onnx if left out.", "FILE", flags=("--export",)
    )
    deploy: str = option("Fuse the best epoch on validation, or the last.", "W", default="best")

    def __post_init__(self) -> None:
        """Refuse what no run can begin with."""
        super().__post_init__()
        _told = self.changes  # says what is wrong with it
        if self.branch is not None and self.branch not in kinds():
            raise InputError(f"--branch {self.branch!r} is no kind; give {', '.join(kinds())}")
        for name in self.exports or ():
            _check_export(name)

    def check_folder(self, *, resume: bool) -> None:
        """Refuse to write over an earlier run; called by one process of a distributed run only."""
        data, out = Path(self.data), self.out.resolve()
        if data.is_dir() and out.is_relative_to(data.resolve()):
            raise InputError(
                f"{self.out} lies in the data, of which it would become a class; choose another "
                "--out, outside of it"
            )
        if (self.out / "resume.ckpt").exists() and not resume:
            raise InputError(
                f"{self.out} holds an earlier run; go on with it (--resume) or choose another --out"
            )

    @property
    def changes(self) -> dict[str, Any]:
        """Values of the recipe to replace, by their names with double underscores."""
        return overrides(self.settings or (), self.epochs, self.batch_size, self.precision)

    @property
    def export_names(self) -> tuple[str, ...]:
        """The files to export: those asked for, else ONNX where it can be written and checked."""
        if self.exports:
            return tuple(self.exports)
        needed = ("onnx", "onnxscript", "onnxruntime")
        return ("deploy.onnx",) if all(map(available, needed)) else ()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Arguments of :func:`reparam.train` that are passed on as they are."""

    seed: int = option("Decides all that is random.", "N", default=0, min=0, max=_MOST_SEED)
    resume: bool = option("Go on with the run in FOLDER, if there is one.", default=False)
    save_every_steps: int | None = option("Checkpoint within an epoch too.", "N", min=1)
    tensorboard: bool = option("Write TensorBoard events beside the CSV table.", default=False)
    workers: int = option(
        "Processes that decode images.", "N", default=0, min=0, max=MOST_PROCESSES
    )
    online: bool | None = option(
        "Merge branches while training, exactly; if left out, where that is faster.",
        flags=("--online/--no-online",),
    )
    online_compile: bool = option(
        "Compile what does not merge, too (seconds; a C++ compiler).", default=False
    )

    def __post_init__(self) -> None:
        """Refuse two that contradict each other."""
        if self.online_compile and self.online is False:
            raise InputError(
                "--online-compile compiles passes of merged blocks, and --no-online merges none; "
                "leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class HardwareOptions:
    """Arguments of :class:`reparam.lab.training.Hardware`."""

    accelerator: str = option("auto, cpu, cuda or mps.", "A", default="auto")
    devices: int = option("Processes on each machine.", "N", default=1, min=1, max=MOST_PROCESSES)
    nodes: int = option("Machines.", "N", default=1, min=1)
    sync_batchnorm: bool = option("Batch statistics over all processes (GPUs).", default=False)

    def __post_init__(self) -> None:
        """Refuse what is not here."""
        if self.accelerator not in _ACCELERATORS:
            known = ", ".join(_ACCELERATORS)
            raise InputError(f"--accelerator {self.accelerator!r} is unknown; give one of {known}")
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise InputError("--accelerator cuda: PyTorch finds no such GPU here; give cpu or auto")


def _check_export(name: str) -> None:
    if Path(name).name != name:
        raise InputError(f"--export {name!r}: give a file name; it is written into --out")
    check_format(Path(name))


def overrides(
    settings: Sequence[str], epochs: int | None, batch_size: int | None, precision: str | None
) -> dict[str, Any]:
    """Read ``optimizer.learning_rate=0.2`` and the options that stand for the usual ones.

    >>> overrides(["optimizer.learning_rate=0.2", "optimizer.kind=adamw"], 3, None, None)
    {'optimizer__learning_rate': 0.2, 'optimizer__kind': 'adamw', 'epochs': 3}
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
