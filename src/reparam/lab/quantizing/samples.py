"""The samples that ranges are read off, and those that the outcome is judged on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from reparam.deploy.engines._inputs import check_eval
from reparam.errors import DataError, InputError
from reparam.lab.data import ImageData, ShardSplit, eval_loader, open_data

if TYPE_CHECKING:
    from torch import nn

Batch: TypeAlias = tuple[Tensor, Tensor | None]
"""Inputs, shape ``(N, ...)``, and their classes, int64 ``(N,)``, where they are known."""

Source: TypeAlias = ImageData | str | os.PathLike[str] | Tensor | Iterable[Any]
"""An opened data set, what :func:`reparam.lab.data.open_data` opens, or batches: a tensor, or an
iterable of tensors or of (inputs, classes)."""

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs held in memory.

    Attributes:
        name: Where they are from.
        inputs: Float tensor, shape ``(N, ...)``, as the model takes it.
        labels: Their classes where known, int64, shape ``(N,)``.
    """

    name: str
    inputs: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int = _BATCH) -> Iterator[Tensor]:
        """Yield the inputs in batches of at most ``size``."""
        yield from torch.split(self.inputs, size)

    def first(self, count: int) -> Tensor:
        """Return the inputs of the first samples."""
        return self.inputs[:count]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the quantized model is judged on: batches that are read once.

    Attributes:
        name: Where they are from.
        batches: Inputs with their classes.
        length: Number of batches, where that is known.
    """

    name: str
    batches: Iterable[Batch]
    length: int | None = None


def samples_for(model: nn.Module, source: Source, count: int, doing: str) -> Samples:
    """Take calibration samples for a model, once it is shown to take them.

    Raises:
        TrainingModeError: The model is in training mode; the message says what for it may not be.
        DataError: As :func:`read_samples`.
        InputError: The model does not run on samples of this shape, or ``count`` is less than 1.
    """
    check_eval(model, doing)
    samples = read_samples(source, count)
    _check_fit(model, samples)
    return samples


def read_samples(source: Source, count: int) -> Samples:
    """Take calibration samples from a data set or from batches.

    Of a data set, ``count`` images of the training split are drawn, the same at every call and
    without augmentation. Of batches, the first ``count`` samples are taken.

    Raises:
        DataError: There are none, or they are no batches of finite floating-point numbers.
        InputError: ``count`` is less than 1.
    """
    if count < 1:
        raise InputError(f"samples is {count}; at least 1 is needed to see the ranges")
    if isinstance(source, str | os.PathLike):
        source = open_data(os.fspath(source))
    if isinstance(source, ImageData):
        drawn, classes_drawn = source.sample(count)
        return Samples(f"{len(drawn)} training images of {source.name}", drawn, classes_drawn)
    parts: list[Batch] = []
    for inputs, labels in _batches(source):
        parts.append((inputs, labels))
        if sum(len(part) for part, _ in parts) >= count:
            break
    if not parts:
        raise DataError(
            "there is no calibration data: the iterable is empty; give some batches of what the "
            "model will see, a few hundred samples in all"
        )
    shapes = {tuple(inputs.shape[1:]) for inputs, _ in parts}
    if len(shapes) > 1:
        raise DataError(f"the calibration batches hold samples of unequal shapes: {shapes}")
    classes = [labels for _, labels in parts if labels is not None]
    known = torch.cat(classes)[:count] if len(classes) == len(parts) else None
    return Samples("the given batches", torch.cat([x for x, _ in parts])[:count], known)


def read_evaluation(
    source: Source | Evaluation | None, calibration: Source, samples: Samples
) -> Evaluation:
    """Return what to judge on: what is given, else the calibration data's own held-out split.

    Raises:
        DataError: ``source`` is of no use.
    """
    if isinstance(source, Evaluation):
        return source
    chosen = calibration if source is None else source
    if isinstance(chosen, str | os.PathLike):
        chosen = open_data(os.fspath(chosen))
    if isinstance(chosen, ImageData):
        return labelled_batches(chosen)
    if source is None:
        held = list(_split(samples.inputs, samples.labels))
        return Evaluation("the calibration samples themselves", held, len(held))
    return Evaluation("the given batches", _batches(chosen))


def labelled_batches(data: ImageData, *, limit: int | None = None) -> Evaluation:
    """Return the test images of a data set, or its validation images where it has no others.

    Args:
        data: The data set.
        limit: Read about so many, spread over the split; ``None`` reads all.
    """
    name, split = ("test", data.test) if data.test is not None else ("validation", data.validation)
    if limit is not None and limit < len(split) and not isinstance(split, ShardSplit):
        split = split.take(torch.linspace(0, len(split) - 1, limit).round().to(torch.int64))
    loader = eval_loader(data, split, batch_size=_BATCH)
    return Evaluation(f"{len(split):,} {name} images of {data.name}", loader, len(loader))


def _split(inputs: Tensor, labels: Tensor | None) -> Iterator[Batch]:
    parts = torch.split(inputs, _BATCH)
    classes = [None] * len(parts) if labels is None else torch.split(labels, _BATCH)
    yield from zip(parts, classes, strict=True)


def _batches(source: Any) -> Iterator[Batch]:
    """Read batches of any of the forms in which they may be given."""
    if isinstance(source, Tensor) or _is_pair(source):
        inputs, labels = (source, None) if isinstance(source, Tensor) else source
        yield from _split(_checked(inputs), labels)
        return
    if not isinstance(source, Iterable):
        raise DataError(
            f"a {type(source).__name__} is no data; give a data set (reparam.lab.data.open_data), "
            "its name, or an iterable of batches"
        )
    for entry in source:
        inputs, labels = entry if _is_pair(entry) else (entry, None)
        yield _checked(inputs), labels


def _is_pair(entry: Any) -> bool:
    """Say whether this is (inputs, classes), and not two batches of inputs."""
    return (
        isinstance(entry, tuple | list)
        and len(entry) == 2
        and all(isinstance(part, Tensor) for part in entry)
        and entry[0].is_floating_point()
        and not entry[1].is_floating_point()
    )


def _checked(inputs: Any) -> Tensor:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        found = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise DataError(
            f"a batch is of type {found}; needed are floating-point tensors as the model takes "
            "them, shape (N, ...), normalised"
        )
    if inputs.dim() < 2 or not len(inputs):
        raise DataError(f"a batch has the shape {tuple(inputs.shape)}; needed is (N, ...)")
    if inputs.is_meta:
        raise DataError("a batch is on the meta device, where tensors hold no numbers")
    if not torch.isfinite(inputs).all():
        raise DataError("a batch holds values that are not finite; no range can be read off them")
    return inputs.detach()


def _check_fit(model: nn.Module, samples: Samples) -> None:
    shape = tuple(samples.inputs.shape[1:])
    try:
        with torch.no_grad():
            output = model(samples.first(2))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise InputError(
            f"{type(model).__name__} does not run on the calibration samples, which have the shape "
            f"{shape}: {error}; bring samples of the shape and number of channels that it takes"
        ) from error
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != len(samples.first(2)):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"{type(model).__name__} returns {found} for {len(samples.first(2))} samples; a model "
            "that returns one tensor of shape (N, ...) can be compared with its quantized form"
        )
