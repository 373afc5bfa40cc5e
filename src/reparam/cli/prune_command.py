"""``reparam prune``: fewer channels in a fused net, to multiply-adds or to a measured latency."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from torch import Tensor, nn

import reparam
from reparam.cli.exported_files import is_onnx
from reparam.cli.groups import command, option
from reparam.cli.options import (
    EvaluateOption,
    InputOptions,
    Inputs,
    JsonOption,
    ModelArgument,
    ModelOptions,
    OutFileOption,
    PixelOptions,
    Target,
    check_out,
)
from reparam.cli.pages import PageOption, check_page, leave_page, provenance
from reparam.cli.targets import load_and_check, load_model, normalised, sized
from reparam.cli.telling import BUILT_WITH, tell_export
from reparam.cli.terminal import Terminal
from reparam.errors import InputError
from reparam.lab.data import ArraySplit, ImageData, StoredSplit, eval_loader, open_data
from reparam.report import from_prune
from reparam.report.numbers import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from reparam.deploy.exporting import ExportResult
    from reparam.lab.data import Split
    from reparam.lab.pruning import PruneResult
    from reparam.report.recording import Judged

_BATCH = 128
_MOST_LAYERS = 30
"""Layers that the table shows; all are in the JSON."""
_FILE_GIVEN = (
    "{model} is a file, and channels are pruned in the net that it was written from; give that as "
    "MODEL, with its fused weights as --weights"
)


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Arguments of :func:`reparam.prune`."""

    macs: float | None = option("Share of the multiply-adds to keep, as in 0.5.", "SHARE")
    latency: str | None = option("Share of the latency to keep, or a time: 0.5, 2.5ms.", "SHARE")
    engine: str | None = option("Where latency is measured; onnxruntime.", "E")
    threads: int | None = option("CPU threads; the engine's default.", "N", min=1)
    importance: str | None = option(
        "magnitude, bn_scale or first_order; first_order where there are data.", "I"
    )
    reconstruct: bool = option("Solve layers on data for what they gave before.", default=True)
    multiple: int = option("Widths become multiples of N.", "N", default=8, min=1)
    keep: list[str] | None = option("A layer whose outputs stay; may be repeated.", "LAYER")

    def arguments(self, *, data: bool) -> dict[str, Any]:
        """The same as they are passed, which depends on whether there are data."""
        usual = "first_order" if data else "magnitude"
        return {**vars(self), "importance": self.importance or usual, "keep": self.keep or ()}


@dataclass(frozen=True, kw_only=True)
class MaterialOptions:
    """What pruning is to work with."""

    data: str | None = option(
        "digits, a folder or zip, torchvision:NAME, or shards: to judge, weigh and solve on.",
        "DATA", flags=("--data", "-d"),
    )  # fmt: skip
    validation: str | None = option("A second source, to judge the result on.", "DATA")
    trained: Path | None = option("Checkpoint of MODEL in training form, for bn_scale.", "FILE")
    images: int = option("Training images to weigh and solve on.", "N", default=1024, min=1)


@dataclass(frozen=True, eq=False)
class _Material:
    """What pruning works with.

    Attributes:
        origin: Where the weights come from, in words.
        model: The fused net.
        trained: Its training form, or None.
        sample: An example input of batch 1 (or as asked for).
        data: The data set, or None.
        batches: Images and labels for the importance and for solving; none without data.
    """

    origin: str
    model: nn.Module
    trained: nn.Module | None
    sample: Tensor
    data: ImageData | None
    batches: tuple[tuple[Tensor, Tensor], ...]


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
    terminal = Terminal(as_json=as_json)
    target, inputs = about.target(model), example.inputs
    check_out(out)
    check_page(report)
    if is_onnx(model):
        raise InputError(_FILE_GIVEN.format(model=model))
    with terminal.progress(f"Pruning {model}") as update:
        material = _load_material(target, on, pixels, inputs, note=lambda what: update(0, 1, what))
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
    terminal.json(_as_dict(model, result, judged, written))
    _tell(terminal, material, result, judged, written)
    if about.weights is None:
        terminal.hint("Note:", BUILT_WITH)
    for follows in _next(target, out, material, on.data):
        terminal.hint("Next:", follows)
    if report is not None:
        told = from_prune(
            result,
            model=model,
            judged=judged,
            judged_on="" if material.data is None else f"validation images of {material.data.name}",
            file=out.name,
            **provenance(context, "torch-pruning"),
        )
        leave_page(terminal, told, report, net=(out, "the pruned net"))


def _judged(material: _Material, result: PruneResult, limit: int | None) -> Judged | None:
    """Count what both nets get right, where there are data."""
    if material.data is None:
        return None
    before, _ = score(material.model, material.data, limit)
    after, images = score(result.model, material.data, limit)
    return before, after, images


def _next(target: Target, out: Path, material: _Material, data: str | None) -> list[str]:
    """Say how the net is trained on, and how it is timed."""
    size = ["--input-size", str(material.sample.shape[-1])]
    if out.suffix.lower() != ".safetensors":
        return [
            command("bench", str(out), *size),
            "write name.safetensors as well to train on: reparam train --branch repvgg takes it",
        ]
    pruned = sized(target, material.data).holding(out)
    bench = command("bench", *pruned.words(), *size)
    if data is None:
        return [bench]
    options = ["--weights", str(out), "--branch", "repvgg", "--data", data, *size]
    run = ["--out", f"{out.with_suffix('')}-run"]
    return [command("train", "--model", target.name, *options, *run), bench]


def _load_material(
    target: Target,
    on: MaterialOptions,
    pixels: PixelOptions,
    inputs: Inputs,
    note: Callable[[str], None],
) -> _Material:
    """Open the data, build the nets and load their weights."""
    found = None
    if on.data is not None:
        note(f"opening {on.data}")
        found = open_data(on.data, validation=on.validation, image_size=inputs.size)
        found = normalised(found, pixels)
    elif on.validation is not None:
        raise InputError("--validation is a second source of data; give --data too")
    elif pixels != PixelOptions():
        raise InputError("--mean and --std are about the data; give --data too")
    note(f"building {target.name}")
    loaded, sample = load_and_check(target, found, inputs)
    wide = None if on.trained is None else load_model(sized(target, found).holding(on.trained))
    return _Material(
        origin=loaded.origin,
        model=loaded.model,
        trained=None if wide is None else wide.model,
        sample=sample,
        data=found,
        batches=() if found is None else _batches(found, on.images),
    )


@torch.inference_mode()
def score(model: nn.Module, data: ImageData, limit: int | None) -> tuple[int, int]:
    """Return how many validation images a net classifies correctly, and of how many."""
    split = _spread(data.validation, limit)
    right = seen = 0
    total = len(split) if limit is None else min(limit, len(split))
    for images, labels in eval_loader(data, split, batch_size=min(_BATCH, total)):
        count = min(len(labels), total - seen)
        right += int((model(images[:count]).argmax(1) == labels[:count]).sum())
        seen += count
        if seen >= total:
            break
    return right, seen


def _spread(split: Split, limit: int | None) -> Split:
    """Take so many images from all over a split: in folders they stand class by class."""
    if limit is None or limit >= len(split) or not isinstance(split, ArraySplit | StoredSplit):
        return split
    return split.take(torch.linspace(0, len(split) - 1, limit).round().to(torch.int64))


def _batches(data: ImageData, images: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Random training images, in batches."""
    found, labels = data.sample(images)
    return tuple(zip(found.split(_BATCH), labels.split(_BATCH), strict=True))


def _as_dict(
    model: str,
    result: PruneResult,
    judged: Judged | None,
    written: ExportResult,
) -> dict[str, Any]:
    """Return all of it as JSON can hold it."""
    told: dict[str, Any] = {"model": model, **result.to_dict(), "export": written.as_dict()}
    if judged is not None:
        before, after, images = judged
        told["accuracy"] = {"before": before / images, "after": after / images}
    return told


def _tell(
    terminal: Terminal,
    material: _Material,
    result: PruneResult,
    judged: Judged | None,
    written: ExportResult,
) -> None:
    """Print the widths, what was saved and lost, and the file."""
    changed = [layer for layer in result.layers if layer.changed]
    rows = [
        (layer.name, layer.what, _pair(layer.before), _pair(layer.after))
        for layer in changed[:_MOST_LAYERS]
    ]
    terminal.table(
        f"Pruned {material.origin} to {result.target}, by {result.importance}",
        ("layer", "", "channels before", "after"),
        rows,
    )
    if len(changed) > len(rows):
        terminal.hint("Note:", f"{len(changed) - len(rows)} more layers; --json lists all")
    terminal.text()
    terminal.table("", ("", "before", "after", "of before"), _totals(result, judged))
    for group in result.groups:
        terminal.hint(
            "Together:",
            f"{len(group.layers)} layers write the same {group.before} -> {group.after} channels, "
            f"as their outputs are added: {', '.join(group.layers)}",
        )
    if result.kept:
        terminal.hint("Left alone:", f"{len(result.kept)} layers; --json says why")
    if result.solved:
        terminal.done(f"Solved {len(result.solved)} layers anew on data for what they gave before")
    tell_export(terminal, written)


def _pair(widths: tuple[int, int]) -> str:
    return f"{widths[0]} -> {widths[1]}"


def _totals(result: PruneResult, judged: Judged | None) -> list[tuple[str, str, str, str]]:
    rows = [
        (name, count(before), count(after), f"{after / before:.2f}")
        for name, (before, after) in (
            ("multiply-adds", result.multiply_adds),
            ("parameters", result.parameters),
        )
    ]
    timed = result.latency
    if timed is not None:
        times = (f"{1e3 * timed.before:.3g} ms", f"{1e3 * timed.after:.3g} ms")
        rows.append((f"latency in {timed.engine}", *times, f"{timed.ratio:.2f}"))
    if judged is not None:
        before, after = (100 * right / judged[2] for right in judged[:2])
        rows.append(
            ("validation accuracy", f"{before:.2f} %", f"{after:.2f} %", f"{after - before:+.2f}")
        )
    return rows
