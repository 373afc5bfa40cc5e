"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from reparam._support.files import check_destination
from reparam._support.optional import require
from reparam.cli.command import CHECKPOINT_FLAGS
from reparam.cli.targets import Checkpoint, Inputs, Target, parse_shape
from reparam.deploy.engines import get_engine
from reparam.deploy.exporting import formats
from reparam.deploy.exporting.formats import find_format
from reparam.errors import InputError

__all__ = [
    "MOST_PROCESSES",
    "SUFFIXES",
    "EvaluateOption",
    "InputOptions",
    "JsonOption",
    "ModelArgument",
    "ModelOptions",
    "NamedInputOptions",
    "OutFileOption",
    "PartOptions",
    "PixelOptions",
    "SizeOption",
    "check_out",
    "refuse_for_files",
    "refuse_names",
]

MOST_CLASSES = 1_000_000
"""More are a slip of the finger, and take the memory of the machine."""
MOST_PROCESSES = 256
"""Of one run; so many on one machine help nowhere."""

_MODEL = (
    "repvgg_a0, timm:NAME, torchvision:NAME, hf:FOLDER, ultralytics:FILE, package.module:factory "
    "or net.onnx"
)
SUFFIXES = tuple(dict.fromkeys(entry.suffix for entry in formats()))
"""Of the formats that a model can be written in."""

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=f"{_MODEL}.")]
OutFileOption = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        help=f"File to write; its suffix is the format: {', '.join(SUFFIXES)}.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--input-size", "--size", metavar="PIXELS", min=1, help="Side of a square example image."
    ),
]
EvaluateOption = Annotated[
    int | None,
    typer.Option("--evaluate", metavar="N", min=1, help="Judge on N held-out images, not all."),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is said about a MODEL beside its name."""

    weights: Annotated[
        Path | None,
        typer.Option(*CHECKPOINT_FLAGS[:2], metavar="FILE", help="Checkpoint to load into MODEL."),
    ] = None
    key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Entry of FILE with the weights; found if left."),
    ] = None
    strict: Annotated[
        bool, typer.Option(help="Refuse weights that do not match in everything.")
    ] = True
    num_classes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=MOST_CLASSES, help="Classes, if not MODEL's default."),
    ] = None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The weights to load.

        Raises:
            InputError: there is an option about a checkpoint, and none to load.
        """
        if self.weights is not None:
            return Checkpoint(self.weights, self.key, self.strict)
        for option, given in (("--key", self.key is not None), ("--no-strict", not self.strict)):
            if given:
                raise InputError(f"{option} is about a checkpoint; give --weights too")
        return None

    def target(self, model: str) -> Target:
        """All that is said about one MODEL.

        Raises:
            InputError: there is an option about a checkpoint, and none to load.
        """
        return Target(model, self.checkpoint, self.num_classes)


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What is said about the example input of a net that takes one."""

    shape: Annotated[
        str | None,
        typer.Option(metavar="N,C,H,W", help="Shape of the example input, batch included."),
    ] = None
    input_size: SizeOption = None

    @property
    def inputs(self) -> Inputs:
        """The two together.

        Raises:
            InputError: the shape is none.
        """
        return _inputs([] if self.shape is None else [self.shape], self.input_size)


@dataclass(frozen=True, kw_only=True)
class NamedInputOptions:
    """What is said about the example inputs of a net or a file, which may take several."""

    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]N,C,H,W",
            help="Shape of the example input, batch included; one for each input of an ONNX file.",
        ),
    ] = None
    input_size: SizeOption = None

    @property
    def inputs(self) -> Inputs:
        """All together.

        Raises:
            InputError: a shape is none, or one is given twice.
        """
        return _inputs(self.shape or [], self.input_size)


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """What of a MODEL is to fold, or to stay at all."""

    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Fold this part only; * fits anything. Repeatable."),
    ] = None
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Keep this result only: a name or position; dots lead into nested ones. "
            "Repeatable.",
        ),
    ] = None
    fix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Fix an input for good: a file.npy, a number, true, false or null. Repeatable.",
        ),
    ] = None

    def asked(self) -> dict[str, Any]:
        """What :func:`reparam.plan` takes.

        Raises:
            InputError: a value to fix cannot be read, or there are two for one name.
        """
        fixed: dict[str, Any] = {}
        for text in self.fix or ():
            name, equals, value = text.partition("=")
            if not equals or not name or name in fixed:
                why = "is the second one for it" if name in fixed else "names no value"
                raise InputError(f"--fix {text} {why}; give name=file.npy, or name=0.5")
            fixed[name] = _value(name, value)
        # One name alone asks for that result itself.
        kept = self.outputs
        one = kept[0] if kept and len(kept) == 1 else kept
        return {"where": self.where or None, "outputs": one or None, "fixed": fixed or None}

    def words(self) -> list[str]:
        """The same, as it is written on the command line."""
        given = {"--where": self.where, "--outputs": self.outputs, "--fix": self.fix}
        return [
            word
            for option, names in given.items()
            for name in names or ()
            for word in (option, name)
        ]


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """How images are normalised, where not as the data set says."""

    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Subtracted from images of 0 to 1, with --std."),
    ] = None
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="What images are divided by, with --mean.")
    ] = None


def refuse_for_files(target: Target, **options: object) -> None:
    """Refuse options that say how to build a model, where MODEL is a file that is built.

    Raises:
        InputError: one of them is given.
    """
    given = {"weights": target.checkpoint, "num_classes": target.num_classes, **options}
    for name, value in given.items():
        if value is not None:
            option = name.replace("_", "-")
            raise InputError(f"{target.name} is a file with its own weights; leave --{option} out")


def check_out(out: Path, backend: str | None = None) -> None:
    """Refuse a path that cannot be written before minutes are spent on what goes there.

    Raises:
        InputError: its suffix names no format, or it or a file beside it cannot be written.
        MissingExtraError: what reads the format back is not installed.
    """
    if out.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise InputError(f"the suffix {out.suffix!r} of {out} names no format; use one of: {known}")
    entry = find_format(out, backend)
    check_destination(out)
    if entry.companion:
        check_destination(out.with_suffix(entry.companion))
    get_engine(entry.engine).require()


def _inputs(texts: list[str], input_size: int | None) -> Inputs:
    named: dict[str, tuple[int, ...]] = {}
    alone = None
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        if name in named or (not equals and alone is not None):
            raise InputError(f"--shape {text} is the second one for the same input; give one each")
        if equals:
            named[name] = parse_shape(sizes)
        else:
            alone = parse_shape(sizes)
    return Inputs(shape=alone, size=input_size, named=named)


def _value(name: str, text: str) -> Any:
    """Read a value to fix: an array in a file, or a plain one."""
    if Path(text).suffix.lower() != ".npy":
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(
                f"--fix {name}={text} is no value; give a file.npy, a number, true, false or null"
            ) from error
    numpy = require("numpy", extra="deploy", purpose="reading an array")
    try:
        return torch.from_numpy(numpy.load(text, allow_pickle=False))
    except OSError as error:
        raise InputError(f"--fix {name}: cannot read {text}: {error.strerror}") from error
    except (ValueError, TypeError, EOFError) as error:
        msg = f"--fix {name}: {text} is no array of numbers as numpy.save writes it"
        raise InputError(msg) from error


def refuse_names(model: str, inputs: Inputs) -> None:
    """Refuse shapes of inputs by name, where MODEL is no ONNX file.

    Raises:
        InputError: there are some.
    """
    if inputs.named:
        name, shape = next(iter(inputs.named.items()))
        sizes = ",".join(map(str, shape))
        raise InputError(
            f"--shape {name}={sizes} is for an input of an ONNX file, and {model} is none; "
            f"give --shape {sizes}"
        )
