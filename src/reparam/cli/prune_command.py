"""``reparam prune``: fewer channels in a fused net, to multiply-adds or to a measured latency."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import reparam
from reparam.cli.exported_files import is_onnx
from reparam.cli.notes import warnings_noted
from reparam.cli.options import (
    InputSizeOption,
    JsonOption,
    KeyOption,
    MeanOption,
    ModelArgument,
    NumClassesOption,
    OutFileOption,
    ShapeOption,
    StdOption,
    StrictOption,
    WeightsOption,
    check_out,
    inputs_from,
    target_from,
)
from reparam.cli.pages import PageOption, check_page, leave_page, provenance
from reparam.cli.pruning import as_dict, load_material, score, tell
from reparam.cli.targets import Checkpoint, Target, command, sized
from reparam.cli.terminal import Terminal
from reparam.errors import InputError
from reparam.report import from_prune

if TYPE_CHECKING:
    from reparam.cli.pruning import Material
    from reparam.lab.pruning import PruneResult
    from reparam.report.from_pruning import Judged

__all__ = ["prune"]

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        metavar="DATA",
        help="digits, a folder or zip, torchvision:NAME, or shards: to judge, weigh and solve on.",
    ),
]
ValidationOption = Annotated[
    str | None,
    typer.Option("--validation", metavar="DATA", help="A second source, to judge the result on."),
]
MacsOption = Annotated[
    float | None,
    typer.Option("--macs", metavar="SHARE", help="Share of the multiply-adds to keep, as in 0.5."),
]
LatencyOption = Annotated[
    str | None,
    typer.Option(
        "--latency", metavar="SHARE", help="Share of the latency to keep, or a time: 0.5, 2.5ms."
    ),
]
EngineOption = Annotated[
    str | None,
    typer.Option("--engine", metavar="E", help="Where latency is measured; onnxruntime."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="CPU threads; the engine's default."),
]
ImportanceOption = Annotated[
    str | None,
    typer.Option(
        "--importance",
        metavar="I",
        help="magnitude, bn_scale or first_order; first_order where there are data.",
    ),
]
TrainedOption = Annotated[
    Path | None,
    typer.Option(
        "--trained", metavar="FILE", help="Checkpoint of MODEL in training form, for bn_scale."
    ),
]
MultipleOption = Annotated[
    int, typer.Option("--multiple", metavar="N", min=1, help="Widths become multiples of N.")
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="LAYER", help="A layer whose outputs stay; may be repeated."),
]
ImagesOption = Annotated[
    int, typer.Option("--images", metavar="N", min=1, help="Training images to weigh and solve on.")
]
EvaluateOption = Annotated[
    int | None,
    typer.Option("--evaluate", metavar="N", min=1, help="Judge on N held-out images, not all."),
]
ReconstructOption = Annotated[
    bool,
    typer.Option(
        "--reconstruct/--no-reconstruct", help="Solve layers on data for what they gave before."
    ),
]


def prune(  # noqa: PLR0913 - one argument for each option
    context: typer.Context,
    model: ModelArgument,
    *,
    out: OutFileOption,
    weights: WeightsOption = None,
    key: KeyOption = None,
    strict: StrictOption = True,
    macs: MacsOption = None,
    latency: LatencyOption = None,
    engine: EngineOption = None,
    threads: ThreadsOption = None,
    data: DataOption = None,
    validation: ValidationOption = None,
    importance: ImportanceOption = None,
    trained: TrainedOption = None,
    reconstruct: ReconstructOption = True,
    multiple: MultipleOption = 8,
    keep: KeepOption = None,
    images: ImagesOption = 1024,
    evaluate: EvaluateOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    shape: ShapeOption = None,
    input_size: InputSizeOption = None,
    num_classes: NumClassesOption = None,
    report: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove channels from the fused MODEL down to a target, and write what is left to OUT."""
    terminal = Terminal()
    target = target_from(model, weights, key, strict, num_classes)
    inputs = inputs_from(shape, input_size)
    check_out(out)
    check_page(report)
    if is_onnx(model):
        raise InputError(
            f"{model} is a file, and channels are pruned in the net that it was written from; give "
            "that as MODEL, with its fused weights as --weights"
        )
    criterion = importance or ("magnitude" if data is None else "first_order")
    with terminal.progress(f"Pruning {model}") as update, warnings_noted(terminal):
        material = load_material(
            target,
            data=data,
            validation=validation,
            normalize=(mean, std),
            trained=trained,
            images=images,
            inputs=inputs,
            note=lambda what: update(0, 1, what),
        )
        result = reparam.prune(
            material.model,
            material.sample,
            macs=macs,
            latency=latency,
            engine=engine,
            threads=threads,
            importance=criterion,
            data=material.batches or None,
            trained=material.trained,
            reconstruct=reconstruct,
            multiple=multiple,
            keep=keep or (),
            progress=update,
        )
        update(1, 1, "judging and writing")
        judged = _judged(material, result, evaluate)
        written = reparam.export(
            result.model,
            out,
            material.sample,
            form="fused",
            source=model,
            notes={"pruned": json.dumps(result.widths)},
        )
    if as_json:
        terminal.json(as_dict(model, result, judged, written))
    else:
        tell(terminal, material, result, judged, written)
        if weights is None:
            terminal.hint("Note:", "no --weights were given; the model has those it was built with")
        for command in _next(target, out, material, data):
            terminal.hint("Next:", command)
    if report is not None:
        told = from_prune(
            result,
            model=model,
            judged=judged,
            judged_on="" if material.data is None else f"validation images of {material.data.name}",
            file=out.name,
            **provenance(context, "torch-pruning"),
        )
        leave_page(None if as_json else terminal, told, report, net=(out, "the pruned net"))


def _judged(material: Material, result: PruneResult, limit: int | None) -> Judged | None:
    """Count what both nets get right, where there are data."""
    if material.data is None:
        return None
    before, _ = score(material.model, material.data, limit)
    after, images = score(result.model, material.data, limit)
    return before, after, images


def _next(target: Target, out: Path, material: Material, data: str | None) -> list[str]:
    """Say how the net is trained on, and how it is timed."""
    size = ["--input-size", str(material.sample.shape[-1])]
    if out.suffix.lower() != ".safetensors":
        return [
            command("bench", str(out), *size),
            "write name.safetensors as well to train on: reparam train --branch repvgg takes it",
        ]
    pruned = replace(sized(target, material.data), checkpoint=Checkpoint(out))
    bench = command("bench", *pruned.words(), *size)
    if data is None:
        return [bench]
    options = ["--weights", str(out), "--branch", "repvgg", "--data", data, *size]
    run = ["--out", f"{out.with_suffix('')}-run"]
    return [command("train", "--model", target.name, *options, *run), bench]
