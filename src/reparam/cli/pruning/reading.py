"""The fused net, its training form and the data that pruning works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import reparam
from reparam.cli.targets import Inputs, Loaded, example_inputs, load_model
from reparam.data import ArraySplit, ImageData, StoredSplit, eval_loader, open_data
from reparam.errors import CheckpointError, InputError
from reparam.models import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from reparam.data import Split

__all__ = ["Material", "gather", "score"]

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


def gather(  # noqa: PLR0913 - what the command line says of model and data
    name: str,
    weights: Path | None,
    *,
    data: str | None,
    validation: str | None,
    trained: Path | None,
    images: int,
    inputs: Inputs,
    num_classes: int | None,
    note: Callable[[str], None],
) -> Material:
    """Open the data, build the nets and load their weights.

    Raises:
        InputError: MODEL, weights and data do not fit together, or the net is not fused.
    """
    found = None
    if data is not None:
        note(f"opening {data}")
        found = open_data(data, validation=validation, image_size=inputs.size)
    elif validation is not None:
        raise InputError("--validation is a second source of data; give --data too")
    classes = num_classes if num_classes is not None or found is None else found.num_classes
    note(f"building {name}")
    loaded = _load(name, weights, classes, inputs)
    sample = _sample(loaded, found, inputs)
    _check_fused(loaded, sample, weights, inputs)
    return Material(
        origin=loaded.origin,
        model=loaded.model,
        trained=None if trained is None else load_model(name, trained, num_classes=classes).model,
        sample=sample,
        data=found,
        batches=() if found is None else _batches(found, images),
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


def _load(name: str, weights: Path | None, classes: int | None, inputs: Inputs) -> Loaded:
    """Load weights of MODEL, or of what folding makes of it: ``reparam fuse`` writes those."""
    classes = _taken(name, classes)
    try:
        return load_model(name, weights, num_classes=classes)
    except CheckpointError:
        built = load_model(name, None, num_classes=classes)
        folded = reparam.fuse(built.model, example_inputs(built, inputs))
        try:
            report = reparam.load_checkpoint(folded, weights or "")
        except CheckpointError:
            report = None
        if report is None:
            raise
        return Loaded(name, folded, report)


def _taken(name: str, classes: int | None) -> int | None:
    """Leave out the number of classes where the user's own factory takes none."""
    source, colon, _ = name.partition(":")
    if classes is None or not colon or source in ("timm", "torchvision"):
        return classes
    try:
        resolve(name, num_classes=classes)
    except InputError as refused:
        if "cannot be called with" in str(refused):
            return None
    return classes


def _sample(loaded: Loaded, data: ImageData | None, inputs: Inputs) -> Tensor:
    """An image of the data, or random values of the shape that was asked for."""
    if data is None or inputs.shape is not None:
        return example_inputs(loaded, inputs)
    shape = (1, *data.image_shape)
    example_inputs(loaded, Inputs(shape=shape))  # which says so if the net takes no such images
    image, _ = data.tensors(data.validation, limit=1)
    return image.to(next(loaded.model.parameters()).dtype)


def _check_fused(loaded: Loaded, sample: Tensor, weights: Path | None, inputs: Inputs) -> None:
    regions = reparam.plan(loaded.model, sample).regions
    if not regions:
        return
    given = "" if weights is None else f" --weights {weights}"
    size = inputs.as_options().rstrip() or f"--input-size {sample.shape[-1]}"
    raise InputError(
        f"{loaded.name} is not fused: {len(regions)} regions would fold, the first at "
        f"{regions[0].where} ({regions[0].what}). Branches that are added have to keep the same "
        f"channels; fuse it first: reparam fuse {loaded.name}{given} {size} -o fused.safetensors; "
        f"then give --weights fused.safetensors"
    )


def _batches(data: ImageData, images: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Random training images, in batches."""
    found, labels = data.sample(images)
    return tuple(zip(found.split(_BATCH), labels.split(_BATCH), strict=True))
