"""``reparam prune``: fewer channels in a fused net, to multiply-adds or to a measured latency."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import reparam
from reparam.cli.exported_files import is_onnx
from reparam.cli.notes import warnings_noted
from reparam.cli.options import (
    EvaluateOption,
    InputOptions,
    JsonOption,
    ModelArgument,
    ModelOptions,
    OutFileOption,
    PixelOptions,
    check_out,
)
from reparam.cli.pages import PageOption, check_page, leave_page, provenance
from reparam.cli.pruning import MaterialOptions, as_dict, load_material, score, tell
from reparam.cli.targets import Checkpoint, Target, command, sized
from reparam.cli.terminal import Terminal
from reparam.errors import InputError
from reparam.report import from_prune

if TYPE_CHECKING:
    from reparam.cli.pruning import Material
    from reparam.lab.pruning import PruneResult
    from reparam.report.recording import Judged

__all__ = ["prune"]

_FILE_GIVEN = (
    "{model} is a file, and channels are pruned in the net that it was written from; give that as "
    "MODEL, with its fused weights as --weights"
)


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Arguments of :func:`reparam.prune`."""

    macs: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of the multiply-adds to keep, as in 0.5."),
    ] = None
    latency: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of the latency to keep, or a time: 0.5, 2.5ms."),
    ] = None
    engine: Annotated[
        str | None, typer.Option(metavar="E", help="Where latency is measured; onnxruntime.")
    ] = None
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads; the engine's default.")
    ] = None
    importance: Annotated[
        str | None,
        typer.Option(
            metavar="I",
            help="magnitude, bn_scale or first_order; first_order where there are data.",
        ),
    ] = None
    reconstruct: Annotated[
        bool, typer.Option(help="Solve layers on data for what they gave before.")
    ] = True
    multiple: Annotated[
        int, typer.Option(metavar="N", min=1, help="Widths become multiples of N.")
    ] = 8
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="A layer whose outputs stay; may be repeated."),
    ] = None

    def arguments(self, *, data: bool) -> dict[str, Any]:
        """The same as they are passed, which depends on whether there are data."""
        usual = "first_order" if data else "magnitude"
        return {**vars(self), "importance": self.importance or usual, "keep": self.keep or ()}


def prune(  # noqa: PLR0913 - one argument for each option or group of them
    context: typer.Context,
    model: ModelArgument,
    *,
    out: OutFileOption,
    about: ModelOptions,
    how: PruneOptions,
    on: MaterialOptions,
    evaluate: EvaluateOption = None,
    pixels: PixelOptions,
    example: InputOptions,
    report: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove channels from the fused MODEL down to a target, and write what is left to OUT."""
    terminal = Terminal()
    target, inputs = about.target(model), example.inputs
    check_out(out)
    check_page(report)
    if is_onnx(model):
        raise InputError(_FILE_GIVEN.format(model=model))
    with terminal.progress(f"Pruning {model}") as update, warnings_noted(terminal):
        material = load_material(target, on, pixels, inputs, note=lambda what: update(0, 1, what))
        result = reparam.prune(
            material.model,
            material.sample,
            data=material.batches or None,
            trained=material.trained,
            progress=update,
            **how.arguments(data=on.data is not None),
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
        if about.weights is None:
            terminal.hint("Note:", "no --weights were given; the model has those it was built with")
        for command in _next(target, out, material, on.data):
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
