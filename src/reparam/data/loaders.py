"""Loaders whose every batch is a function of (seed, epoch, batch), on any number of processes.

A training loader is an endless row of batches with a *position*; it can be told to continue anywhere. The images of an
optimizer step and their augmentation are drawn for the whole step, and each process and each part of an accumulated
step takes its rows of it: two processes see between them exactly what one would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reparam.data._seeds import generator
from reparam.data.augment import Augment, augment_batch, draw_batch
from reparam.data.dataset import ArraySplit, ImageData, Split
from reparam.errors import DataError

__all__ = ["ArrayTrainLoader", "EvalLoader", "Sharding", "TrainLoader"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sharding:
    """How an optimizer step is dealt out.

    Attributes:
        batch_size: Images of one optimizer step, over all processes and accumulated parts.
        rank: This process, 0 to `world_size` - 1.
        world_size: Number of processes.
        accumulate: Number of parts that each process adds up before it steps.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Check that a step can be dealt out evenly."""
        parts = self.world_size * self.accumulate
        if self.batch_size < 1 or self.batch_size % parts:
            raise DataError(
                f"a batch of {self.batch_size} images cannot be dealt out evenly to {self.world_size} process(es) "
                f"of {self.accumulate} accumulated part(s): choose a batch size that is a multiple of {parts}"
            )

    @property
    def part_size(self) -> int:
        """Images of one forward pass on one process."""
        return self.batch_size // (self.world_size * self.accumulate)

    def steps(self, images: int) -> int:
        """Return the number of whole optimizer steps in an epoch of so many images."""
        return images // self.batch_size

    def rows(self, part: int) -> tuple[int, int]:
        """Return the first and the last-plus-one row of a step that this process takes in one part."""
        start = (part * self.world_size + self.rank) * self.part_size
        return start, start + self.part_size


class TrainLoader:
    """Base of the training loaders: the position, and how it moves.

    The position is advanced *before* a batch is handed out, so that a checkpoint written while the batch is worked on
    names the batch after it.
    """

    def __init__(self, images: int, sharding: Sharding, seed: int, where: str) -> None:
        """Start at the first batch of epoch 0 of a split of so many images, named `where` in errors."""
        if sharding.steps(images) == 0:
            raise DataError(
                f"{where} has {images} training images, fewer than one batch of {sharding.batch_size}: "
                "lower the batch size or bring more images"
            )
        self.images = images
        self.sharding = sharding
        self.seed = seed
        self.epoch = 0
        self.batch = 0

    def __len__(self) -> int:
        """Return the number of batches that this process gets in one epoch."""
        return self.sharding.steps(self.images) * self.sharding.accumulate

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the position to the end of its epoch."""
        # A generator: the position is read when the first batch is asked for, not when the iterator is made.
        epoch = self.epoch
        for batch, content in self._batches(epoch, self.batch):
            last = batch + 1 == len(self)
            self.epoch, self.batch = (epoch + 1, 0) if last else (epoch, batch + 1)
            yield content

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Continue at a batch of an epoch."""
        self.epoch, self.batch = epoch, batch

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of :meth:`state_dict`."""
        self.seek(int(state["epoch"]), int(state["batch"]))

    def step_indices(self, epoch: int, step: int) -> Tensor:
        """Return the images of a whole optimizer step, int64, shape (batch_size,)."""
        start = step * self.sharding.batch_size
        return self._order(epoch)[start : start + self.sharding.batch_size]

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(self.images, generator=generator(self.seed, "order", epoch))

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[int, Batch]]:
        raise NotImplementedError


class ArrayTrainLoader(TrainLoader):
    """Batches of a split in memory, augmented as whole tensors: no image is decoded or touched alone."""

    def __init__(self, data: ImageData, sharding: Sharding, *, augment: Augment, seed: int) -> None:
        """Read the training split of `data`, which must be an :class:`ArraySplit`."""
        if not isinstance(data.train, ArraySplit):
            raise DataError(f"{data.name} is not held in memory; open it with memory=True")
        super().__init__(len(data.train), sharding, seed, data.name)
        self._data = data
        self._split = data.train
        self._augment = augment
        self._fill = torch.tensor(data.mean).mul(255.0).round()

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[int, Batch]]:
        order = self._order(epoch)
        for batch in range(start, len(self)):
            step, part = divmod(batch, self.sharding.accumulate)
            first = step * self.sharding.batch_size
            indices = order[first : first + self.sharding.batch_size]
            yield batch, self._load(indices, epoch, step, self.sharding.rows(part))

    def _load(self, indices: Tensor, epoch: int, step: int, rows: tuple[int, int]) -> Batch:
        _, height, width = self._data.image_shape
        draws = draw_batch(
            self._augment, indices, (height, width), seed=self.seed, epoch=epoch, step=step
        ).rows(*rows)
        mine = self._split.take(indices[slice(*rows)])
        images = augment_batch(mine.images, draws, cutout=self._augment.cutout, fill=self._fill)
        return self._data.normalise(images), mine.labels


class EvalLoader:
    """Every image of a split once, in order, in batches; with several processes each takes every n-th image.

    The last batches may be short and processes may get one image less than others, so that nothing is read twice.
    """

    def __init__(
        self, data: ImageData, split: Split, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """Read `split` of `data`."""
        self._data = data
        self._split = split
        self._batch_size = batch_size
        self._indices = torch.arange(rank, len(split), world_size)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._indices) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield normalised images and their labels."""
        for indices in self._indices.split(self._batch_size):
            part = _gather(self._split, indices)
            yield self._data.normalise(part.images), part.labels


def _gather(split: Split, indices: Tensor) -> ArraySplit:
    if isinstance(split, ArraySplit):
        return split.take(indices)
    positions = indices.tolist()
    images = torch.stack([split.image(position) for position in positions])
    labels = torch.tensor([split.label(position) for position in positions], dtype=torch.int64)
    return ArraySplit(images, labels)
