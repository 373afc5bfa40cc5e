"""``reparam quantize``: a fused net in eight bits, judged in its engine before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from reparam.cli.exported_files import is_onnx
from reparam.cli.groups import command, option
from reparam.cli.options import (
    EvaluateOption,
    Inputs,
    JsonOption,
    ModelArgument,
    ModelOptions,
    PixelOptions,
    SizeOption,
    check_out,
)
from reparam.cli.pages import PageOption, check_page, leave_page, provenance
from reparam.cli.targets import load_and_check, normalised
from reparam.cli.telling import BUILT_WITH
from reparam.cli.terminal import Terminal
from reparam.errors import InputError
from reparam.lab.data import open_data
from reparam.report import from_quantize, sentence
from reparam.report.recording import quantization_record

if TYPE_CHECKING:
    from reparam.lab.quantizing import LayerDiagnosis, QuantizeResult

_ROWS = 8
"""Layers that the table shows; all are in the JSON."""
_FILE_GIVEN = (
    "{model} is a file, and what hurts is found in the net that it was written from; give that as "
    "MODEL, with its fused weights as --weights"
)


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What is calibrated and judged on, and where the result goes."""

    data: str = option(
        "Calibration and test data: digits, a folder or zip, torchvision:NAME, or shards.",
        "DATA", flags=("--data", "-d"), default=...,
    )  # fmt: skip
    out: Path = option(
        "File to write: .xml (OpenVINO), .onnx, .tflite (LiteRT).",
        "OUT", flags=("--out", "-o"), default=...,
    )  # fmt: skip
    validation: str | None = option("A second source, to judge the result on.", "DATA")


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """Arguments of :func:`reparam.quantize`."""

    engine: str | None = option("openvino, onnxruntime, litert; the suffix decides.", "E")
    equalize: bool = option("Equalise channels first; the same function in float.", default=False)
    correct_bias: bool = option(
        "Re-calibrate the means of all channels.",
        flags=("--bias-correction/--no-bias-correction",), default=True,
    )  # fmt: skip
    keep_float: int = option("Leave the N worst layers in float.", "N", default=0, min=0)
    samples: int = option("Images to calibrate on.", "N", default=300, min=1)
    target: str = option(
        "Processors to be right on: auto (this one), avx2, avx512, vnni, arm or any.",
        "T", default="auto",
    )  # fmt: skip
    weight_bits: int | None = option("8 or 7, in place of the target's.", "B")
    max_drop: float | None = option("Write nothing if more accuracy is lost.", "POINTS")


def quantize(  # noqa: PLR0913 - one argument for each option or group of them
    context: typer.Context,
    model: ModelArgument,
    *,
    about: ModelOptions,
    on: JudgeOptions,
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

    terminal = Terminal(as_json=as_json)
    given = about.target(model)
    check_target(on.out, how.engine)
    check_out(on.out)
    check_page(report)
    if is_onnx(model):
        raise InputError(_FILE_GIVEN.format(model=model))
    with terminal.progress(f"Quantizing {model}") as update:
        update(0, 1, f"opening {on.data}")
        found = open_data(on.data, validation=on.validation, image_size=input_size)
        found = normalised(found, pixels)
        loaded, _ = load_and_check(given, found, Inputs(size=input_size))
        result = write_quantized(
            loaded.model,
            on.out,
            found,
            evaluation=labelled_batches(found, limit=evaluate),
            source=model,
            progress=update,
            **vars(how),
        )
    terminal.json({"model": model, **result.as_dict()})
    if about.weights is None:
        terminal.hint("Note:", BUILT_WITH)
    _tell(terminal, model, result)
    if report is not None:
        told = from_quantize(result, model=model, **provenance(context, "nncf"))
        leave_page(terminal, told, report, net=(on.out, "the net in eight bits"))


def _tell(terminal: Terminal, model: str, result: QuantizeResult) -> None:
    """Print the verdict, the layers that hurt, the file, and what can be done next."""
    score = result.score
    rows = []
    if score.float_accuracy is not None and score.accuracy is not None:
        rows.append(
            ("accuracy", f"{score.float_accuracy:.2%}", f"{score.accuracy:.2%} in {result.engine}")
        )
    if score.agreement is not None:
        rows.append(("same class as float", "", f"{score.agreement:.2%}"))
    rows += [
        ("signal to noise of the output", "", f"{score.output_db:.1f} dB"),
        ("size", f"{result.float_bytes / 1e6:.2f} MB", f"{result.size_bytes / 1e6:.2f} MB"),
        ("layers", str(_layers(result)), f"{len(result.quantized)} in int8"),
    ]
    terminal.table(f"Quantized {model}", ("", "float", "int8"), rows)
    terminal.text(f"  judged on {score.on}; calibrated on {result.calibration}")
    terminal.text()
    _tell_layers(terminal, result)
    if result.equalised:
        terminal.done(f"Channels were equalised at {len(result.equalised)} places")
    if result.kept_float:
        terminal.done(f"Left in float: {', '.join(result.kept_float)}")
    terminal.done(f"Wrote {result.path} ({result.format}), read back in {result.engine}")
    terminal.done(f"Weights of {result.weight_bits} bits, right on {result.right_on}")
    for hint in _next(result):
        terminal.hint("Next:", hint)


def _layers(result: QuantizeResult) -> int:
    return len(result.quantized) + len(result.kept_float)


def _tell_layers(terminal: Terminal, result: QuantizeResult) -> None:
    if result.diagnosis is None:
        return
    worst = result.diagnosis.worst(_ROWS)
    title = "Layers that hurt most, each rounded alone (6 dB are one bit)"
    columns = ("layer", "weights", "reads", "spread", "in dB", "output dB")
    terminal.table(title, columns, [_row(layer) for layer in worst])
    left = len(result.diagnosis.layers) - len(worst)
    more = f", {left} more layers with --json" if left else ""
    terminal.text(f"  all at once: {result.diagnosis.output_db:.1f} dB by simulation{more}")
    terminal.text()


def _row(layer: LayerDiagnosis) -> tuple[str, ...]:
    return (
        layer.name,
        f"{layer.weight_low:.2f}..{layer.weight_high:.2f}",
        f"{layer.input_low:.1f}..{layer.input_high:.1f}",
        f"{layer.input_spread:.1f}x",
        f"{layer.input_db:.0f}",
        f"{layer.output_db:.1f}",
    )


def _next(result: QuantizeResult) -> list[str]:
    """Remedies that were not tried, where too much was lost; and the measurement."""
    size = str(result.input_shape[-1])
    bench = command("bench", str(result.path), "--engines", result.engine, "--input-size", size)
    untried = sentence("advice", quantization_record(result))
    return [untried, bench] if untried else [bench]
