"""What was asked for, and what of it can be found wrong before data are read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.optional import available
from reparam.branching import kinds
from reparam.cli.targets import Checkpoint
from reparam.deploy.engines import get_engine
from reparam.deploy.exporting import formats
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TrainRequest", "overrides"]

_ACCELERATORS = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class TrainRequest:
    """One run.

    Attributes:
        data: as :func:`reparam.lab.data.open_data` takes it.
        out: folder of the run.
        model: MODEL, or None for the recipe's own, or else a small RepVGG.
        recipe: a name or a file, or None for the one that fits the data.
        branch: a kind of branching, to widen a plain MODEL with, or None.
        checkpoint: weights to begin from, or None for fresh ones.
        num_classes: classes of MODEL, or None for those of the data.
        validation: a second source of data, or None.
        size: side of the images in pixels, or None for the data's own.
        changes: values of the recipe to replace, by their names with double underscores.
        seed: of everything random.
        resume: go on with the run in `out`.
        save_every_steps: write the resume checkpoint within an epoch too.
        tensorboard: write TensorBoard events.
        workers: processes that decode images.
        accelerator: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: processes on each machine.
        nodes: machines.
        sync_batchnorm: batch statistics over all processes.
        online: merge branches while training; None: where that is faster.
        exports: names of files to export the fused model to, or None for ONNX where it can be.
        deploy: ``"best"`` or ``"last"``: the epoch whose weights are fused.
    """

    data: str
    out: Path
    model: str | None = None
    recipe: str | None = None
    branch: str | None = None
    checkpoint: Checkpoint | None = None
    num_classes: int | None = None
    validation: str | None = None
    size: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    resume: bool = False
    save_every_steps: int | None = None
    tensorboard: bool = False
    workers: int = 0
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    sync_batchnorm: bool = False
    online: bool | None = None
    exports: tuple[str, ...] | None = None
    deploy: str = "best"

    def __post_init__(self) -> None:
        """Refuse what no run can begin with.

        Raises:
            InputError: a value is unknown, or `out` holds another run.
            MissingExtraError: the engine of an export is not installed.
        """
        if self.branch is not None and self.branch not in kinds():
            raise InputError(f"--branch {self.branch!r} is no kind; give {', '.join(kinds())}")
        if self.accelerator not in _ACCELERATORS:
            known = ", ".join(_ACCELERATORS)
            raise InputError(f"--accelerator {self.accelerator!r} is unknown; give one of {known}")
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise InputError("--accelerator cuda: PyTorch finds no such GPU here; give cpu or auto")
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
    def export_names(self) -> tuple[str, ...]:
        """The files to export: those asked for, else ONNX where it can be written and checked."""
        if self.exports is not None:
            return self.exports
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
