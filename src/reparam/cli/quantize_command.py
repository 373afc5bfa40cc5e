"""``reparam quantize``: a fused net in eight bits, judged in its engine before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reparam.cli.exported_files import is_onnx
from reparam.cli.fused import load_and_check, normalised
from reparam.cli.notes import warnings_noted
from reparam.cli.options import (
    InputSizeOption,
    JsonOption,
    KeyOption,
    MeanOption,
    ModelArgument,
    NumClassesOption,
    StdOption,
    StrictOption,
    WeightsOption,
    check_out,
    target_from,
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
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine", metavar="E", help="openvino, onnxruntime, litert; the suffix decides."
    ),
]
SamplesOption = Annotated[
    int, typer.Option("--samples", metavar="N", min=1, help="Images to calibrate on.")
]
EvaluateOption = Annotated[
    int | None,
    typer.Option("--evaluate", metavar="N", min=1, help="Judge on N held-out images, not all."),
]
EqualizeOption = Annotated[
    bool, typer.Option("--equalize", help="Equalise channels first; the same function in float.")
]
BiasOption = Annotated[
    bool,
    typer.Option(
        "--bias-correction/--no-bias-correction", help="Re-calibrate the means of all channels."
    ),
]
KeepFloatOption = Annotated[
    int,
    typer.Option("--keep-float", metavar="N", min=0, help="Leave the N worst layers in float."),
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="T",
        help="Processors to be right on: auto (this one), avx2, avx512, vnni, arm or any.",
    ),
]
WeightBitsOption = Annotated[
    int | None,
    typer.Option("--weight-bits", metavar="B", help="8 or 7, in place of the target's."),
]
MaxDropOption = Annotated[
    float | None,
    typer.Option("--max-drop", metavar="POINTS", help="Write nothing if more accuracy is lost."),
]


def quantize(  # noqa: PLR0913 - one argument for each option
    context: typer.Context,
    model: ModelArgument,
    *,
    data: DataOption,
    out: OutOption,
    weights: WeightsOption = None,
    key: KeyOption = None,
    strict: StrictOption = True,
    validation: ValidationOption = None,
    engine: EngineOption = None,
    equalize: EqualizeOption = False,
    bias_correction: BiasOption = True,
    keep_float: KeepFloatOption = 0,
    samples: SamplesOption = 300,
    evaluate: EvaluateOption = None,
    target: TargetOption = "auto",
    weight_bits: WeightBitsOption = None,
    max_drop: MaxDropOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    input_size: InputSizeOption = None,
    num_classes: NumClassesOption = None,
    report: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the fused MODEL in eight bits to OUT, judged on DATA in the engine that runs it."""
    from reparam.lab.quantizing import check_target, labelled_batches
    from reparam.lab.quantizing import quantize as write_quantized

    terminal = Terminal()
    given = target_from(model, weights, key, strict, num_classes)
    check_target(out, engine)
    check_out(out)
    check_page(report)
    if is_onnx(model):
        raise InputError(
            f"{model} is a file, and what hurts is found in the net that it was written from; give "
            "that as MODEL, with its fused weights as --weights"
        )
    with terminal.progress(f"Quantizing {model}") as update, warnings_noted(terminal):
        update(0, 1, f"opening {data}")
        found = open_data(data, validation=validation, image_size=input_size)
        found = normalised(found, mean, std)
        loaded, _ = load_and_check(given, found, Inputs(size=input_size))
        result = write_quantized(
            loaded.model,
            out,
            found,
            engine=engine,
            evaluation=labelled_batches(found, limit=evaluate),
            samples=samples,
            equalize=equalize,
            correct_bias=bias_correction,
            keep_float=keep_float,
            target=target,
            weight_bits=weight_bits,
            max_drop=max_drop,
            source=model,
            progress=update,
        )
    _show(terminal, model, weights, result, as_json=as_json)
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
