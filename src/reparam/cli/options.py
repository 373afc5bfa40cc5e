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
    "WeightsOption",
    "inputs_from",
    "refuse_for_files",
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


def inputs_from(shape: str | None, input_size: int | None) -> Inputs:
    """What the two options say about the input together.

    Raises:
        InputError: the shape is none.
    """
    return Inputs(shape=parse_shape(shape) if shape is not None else None, size=input_size)
