"""``reparam quantize``: a fused net in eight bits, judged in its engine before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reparam.cli.exported_files import is_onnx
from reparam.cli.fused import load_and_check, normalised
from reparam.cli.notes import warnings_noted
from reparam.cli.options import (
    EvaluateOption,
    JsonOption,
    ModelArgument,
    ModelOptions,
    PixelOptions,
    SizeOption,
    check_out,
)
from reparam.cli.pages import PageOption, check_page, leave_page, provenance
from reparam.cli.quantizing import tell
from reparam.cli.targets import Inputs
from reparam.cli.terminal import Terminal
from reparam.errors import InputError
from reparam.lab.data import open_data
from reparam.report import from_quantize

if TYPE_CHECKING:
    from reparam.lab.quantizing import QuantizeResult

__all__ = ["quantize"]

_FILE_GIVEN = (
    "{model} is a file, and what hurts is found in the net that it was written from; give that as "
    "MODEL, with its fused weights as --weights"
)

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        metavar="DATA",
        help="Calibration and test data: digits, a folder or zip, torchvision:NAME, or shards.",
    ),
]
ValidationOption = Annotated[
    str | None,
    typer.Option("--validation", metavar="DATA", help="A second source, to judge the result on."),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        help="File to write: .xml (OpenVINO), .onnx, .tflite (LiteRT).",
    ),
]


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Arguments of :func:`reparam.quantize`."""

    engine: Annotated[
        str | None,
        typer.Option(metavar="E", help="openvino, onnxruntime, litert; the suffix decides."),
    ] = None
    equalize: Annotated[
        bool,
        typer.Option("--equalize", help="Equalise channels first; the same function in float."),
    ] = False
    correct_bias: Annotated[
        bool,
        typer.Option(
            "--bias-correction/--no-bias-correction", help="Re-calibrate the means of all channels."
        ),
    ] = True
    keep_float: Annotated[
        int, typer.Option(metavar="N", min=0, help="Leave the N worst layers in float.")
    ] = 0
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Images to calibrate on.")] = 300
    target: Annotated[
        str,
        typer.Option(
            metavar="T",
            help="Processors to be right on: auto (this one), avx2, avx512, vnni, arm or any.",
        ),
    ] = "auto"
    weight_bits: Annotated[
        int | None, typer.Option(metavar="B", help="8 or 7, in place of the target's.")
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Write nothing if more accuracy is lost."),
    ] = None


def quantize(  # noqa: PLR0913 - one argument for each option or group of them
    context: typer.Context,
    model: ModelArgument,
    *,
    data: DataOption,
    out: OutOption,
    about: ModelOptions,
    validation: ValidationOption = None,
    how: QuantizeOptions,
    evaluate: EvaluateOption = None,
    pixels: PixelOptions,
    input_size: SizeOption = None,
    report: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the fused MODEL in eight bits to OUT, judged on DATA in the engine that runs it."""
    from reparam.lab.quantizing import check_target, labelled_batches
    from reparam.lab.quantizing import quantize as write_quantized

    terminal = Terminal()
    given = about.target(model)
    check_target(out, how.engine)
    check_out(out)
    check_page(report)
    if is_onnx(model):
        raise InputError(_FILE_GIVEN.format(model=model))
    with terminal.progress(f"Quantizing {model}") as update, warnings_noted(terminal):
        update(0, 1, f"opening {data}")
        found = open_data(data, validation=validation, image_size=input_size)
        found = normalised(found, pixels)
        loaded, _ = load_and_check(given, found, Inputs(size=input_size))
        result = write_quantized(
            loaded.model,
            out,
            found,
            evaluation=labelled_batches(found, limit=evaluate),
            source=model,
            progress=update,
            **vars(how),
        )
    _show(terminal, model, about.weights, result, as_json=as_json)
    if report is not None:
        told = from_quantize(result, model=model, **provenance(context, "nncf"))
        leave_page(None if as_json else terminal, told, report, net=(out, "the net in eight bits"))


def _show(
    terminal: Terminal,
    model: str,
    weights: Path | None,
    result: QuantizeResult,
    *,
    as_json: bool,
) -> None:
    if as_json:
        terminal.json({"model": model, **result.as_dict()})
        return
    if weights is None:
        terminal.hint("Note:", "no --weights were given; the model has those it was built with")
    tell(terminal, model, result)
