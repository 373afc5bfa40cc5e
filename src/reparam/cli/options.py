"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    "FixOption",
    "InputSizeOption",
    "JsonOption",
    "KeyOption",
    "MeanOption",
    "ModelArgument",
    "NumClassesOption",
    "OutFileOption",
    "OutputsOption",
    "ShapeOption",
    "ShapesOption",
    "StdOption",
    "StrictOption",
    "WeightsOption",
    "WhereOption",
    "asked_of",
    "asked_words",
    "check_out",
    "inputs_from",
    "refuse_for_files",
    "refuse_names",
    "target_from",
]

MOST_CLASSES = 1_000_000
"""More are a slip of the finger, and take the memory of the machine."""
MOST_PROCESSES = 256
"""Of one run; so many on one machine help nowhere."""

_MODEL = (
    "repvgg_a0, timm:NAME, torchvision:NAME, hf:FOLDER, ultralytics:FILE, package.module:factory "
    "or net.onnx"
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=f"{_MODEL}.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option(*CHECKPOINT_FLAGS[:2], metavar="FILE", help="Checkpoint to load into MODEL."),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="NAME", help="Entry of FILE with the weights; found if left."),
]
StrictOption = Annotated[
    bool,
    typer.Option("--strict/--no-strict", help="Refuse weights that do not match in everything."),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where", metavar="NAME", help="Fold this part only; * fits anything. Repeatable."
    ),
]
OutputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--outputs",
        metavar="NAME",
        help="Keep this result only: a name or position; dots lead into nested ones. Repeatable.",
    ),
]
FixOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fix",
        metavar="NAME=VALUE",
        help="Fix an input for good: a file.npy, a number, true, false or null. Repeatable.",
    ),
]
NumClassesOption = Annotated[
    int | None,
    typer.Option(
        "--num-classes",
        metavar="N",
        min=1,
        max=MOST_CLASSES,
        help="Classes, if not MODEL's default.",
    ),
]
ShapeOption = Annotated[
    str | None,
    typer.Option("--shape", metavar="N,C,H,W", help="Shape of the example input, batch included."),
]
ShapesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="[NAME=]N,C,H,W",
        help="Shape of the example input, batch included; one for each input of an ONNX file.",
    ),
]
InputSizeOption = Annotated[
    int | None,
    typer.Option(
        "--input-size", "--size", metavar="PIXELS", min=1, help="Side of a square example image."
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option("--mean", metavar="R,G,B", help="Subtracted from images of 0 to 1, with --std."),
]
StdOption = Annotated[
    str | None,
    typer.Option("--std", metavar="R,G,B", help="What images are divided by, with --mean."),
]
SUFFIXES = tuple(dict.fromkeys(entry.suffix for entry in formats()))
"""Of the formats that a model can be written in."""

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


def target_from(
    model: str,
    weights: Path | None,
    key: str | None,
    strict: bool,  # noqa: FBT001 - passed on by every command
    num_classes: int | None = None,
) -> Target:
    """What MODEL and the options about it say together.

    Raises:
        InputError: there is an option about a checkpoint, and none to load.
    """
    if weights is None:
        for option, given in (("--key", key is not None), ("--no-strict", not strict)):
            if given:
                raise InputError(f"{option} is about a checkpoint; give --weights too")
        return Target(model, None, num_classes)
    return Target(model, Checkpoint(weights, key, strict), num_classes)


def inputs_from(shape: str | list[str] | None, input_size: int | None) -> Inputs:
    """What the two options say about the input together.

    Raises:
        InputError: a shape is none, or one is given twice.
    """
    texts = [shape] if isinstance(shape, str) else shape or []
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


def asked_of(
    where: list[str] | None, outputs: list[str] | None, fix: list[str] | None
) -> dict[str, Any]:
    """What the options ask of a model, as :func:`reparam.plan` takes it.

    Raises:
        InputError: a value to fix cannot be read, or there are two for one name.
    """
    fixed: dict[str, Any] = {}
    for text in fix or ():
        name, equals, value = text.partition("=")
        if not equals or not name or name in fixed:
            why = "is the second one for it" if name in fixed else "names no value"
            raise InputError(f"--fix {text} {why}; give name=file.npy, or name=0.5")
        fixed[name] = _value(name, value)
    # One name alone asks for that result itself.
    kept = outputs[0] if outputs and len(outputs) == 1 else outputs
    return {"where": where or None, "outputs": kept or None, "fixed": fixed or None}


def asked_words(asked: Mapping[str, Any], fix: list[str] | None) -> list[str]:
    """The same, as it is written on the command line."""
    given = {"--where": asked["where"], "--outputs": asked["outputs"], "--fix": fix}
    return [
        word
        for option, names in given.items()
        for name in ([names] if isinstance(names, str) else names or ())
        for word in (option, name)
    ]


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
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"--fix {name}: cannot read {text} as an array: {error}") from error


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
