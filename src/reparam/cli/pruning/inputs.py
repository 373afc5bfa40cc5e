"""The fused net, its training form and the data that pruning works with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch import Tensor, nn

from reparam.cli.fused import load_and_check, normalised
from reparam.cli.options import PixelOptions
from reparam.cli.targets import Checkpoint, Inputs, Target, load_model, sized
from reparam.errors import InputError
from reparam.lab.data import ArraySplit, ImageData, StoredSplit, eval_loader, open_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from reparam.lab.data import Split

__all__ = ["Material", "MaterialOptions", "load_material", "score"]

_BATCH = 128


@dataclass(frozen=True, eq=False)
class Material:
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


@dataclass(frozen=True, kw_only=True)
class MaterialOptions:
    """What pruning is to work with."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="digits, a folder or zip, torchvision:NAME, or shards: to judge, weigh and solve "
            "on.",
        ),
    ] = None
    validation: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="A second source, to judge the result on."),
    ] = None
    trained: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Checkpoint of MODEL in training form, for bn_scale."),
    ] = None
    images: Annotated[
        int, typer.Option(metavar="N", min=1, help="Training images to weigh and solve on.")
    ] = 1024


def load_material(
    target: Target,
    on: MaterialOptions,
    pixels: PixelOptions,
    inputs: Inputs,
    note: Callable[[str], None],
) -> Material:
    """Open the data, build the nets and load their weights.

    Raises:
        InputError: MODEL, weights and data do not fit together, or the net is not fused.
    """
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
    return Material(
        origin=loaded.origin,
        model=loaded.model,
        trained=None if on.trained is None else _training_form(sized(target, found), on.trained),
        sample=sample,
        data=found,
        batches=() if found is None else _batches(found, on.images),
    )


def _training_form(target: Target, weights: Path) -> nn.Module:
    return load_model(replace(target, checkpoint=Checkpoint(weights))).model


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
