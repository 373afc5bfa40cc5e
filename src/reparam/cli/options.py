"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam.cli.targets import Inputs, parse_shape
from reparam.errors import InputError
from reparam.exporting import formats

__all__ = [
    "SUFFIXES",
    "InputSizeOption",
    "JsonOption",
    "ModelArgument",
    "NumClassesOption",
    "OutFileOption",
    "ShapeOption",
    "ShapesOption",
    "WeightsOption",
    "inputs_from",
    "refuse_for_files",
    "refuse_names",
]

_MODEL = "repvgg_a0, timm:NAME, torchvision:NAME, package.module:factory or net.onnx"

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=f"{_MODEL}.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", "-w", metavar="FILE", help="Checkpoint to load into MODEL."),
]
NumClassesOption = Annotated[
    int | None,
    typer.Option("--num-classes", metavar="N", min=1, help="Classes, if not MODEL's default."),
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


def refuse_for_files(model: str, **options: object) -> None:
    """Refuse options that say how to build a model, where MODEL is a file that is built.

    Raises:
        InputError: one of them is given.
    """
    for name, value in options.items():
        if value is not None:
            option = name.replace("_", "-")
            raise InputError(f"{model} is a file with its own weights; leave --{option} out")


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
