"""Training loaders: every batch is a function of (seed, epoch, batch), on any number of processes.

A training loader is an endless row of batches with a *position*; it can be told to continue
anywhere. The images of an optimizer step and their augmentation are drawn for the whole step, and
each process and each part of an accumulated step takes its rows of it: two processes see between
them exactly what one would. (torchdata's StatefulDataLoader goes on as well, but on as many
processes, each with a state of its own.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from reparam.errors import DataError
from reparam.lab.data._seeds import generator
from reparam.lab.data.augment import Epoch, augment_batch, draw_batch
from reparam.lab.data.batches import read, rebatch
from reparam.lab.data.shards import CHUNK, ShardStream
from reparam.lab.data.splits import ShardSplit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from reparam.lab.data.augment import Augment
    from reparam.lab.data.batches import Batch
    from reparam.lab.data.dataset import ImageData
    from reparam.lab.data.splits import ArraySplit, StoredSplit


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
        parts = self.world_size * self.accumulate
        if self.batch_size < 1 or self.batch_size % parts:
            raise DataError(
                f"a batch of {self.batch_size} images cannot be dealt out evenly to "
                f"{self.world_size} process(es) in {self.accumulate} accumulated part(s): "
                f"choose a batch size that is a multiple of {parts}"
            )

    @property
    def part_size(self) -> int:
        """Images of one forward pass on one process."""
        return self.batch_size // (self.world_size * self.accumulate)

    def rows(self, part: int) -> slice:
        """Return the rows of a step that this process takes in one of its parts."""
        start = (part * self.world_size + self.rank) * self.part_size
        return slice(start, start + self.part_size)


class TrainLoader:
    """Base of the training loaders: the position, and how it moves.

    The position is advanced *before* a batch is handed out, so that a checkpoint written while the
    batch is worked on names the batch after it.

    Attributes:
        epoch: Epoch of the next batch, 0 for the first.
        batch: Number of the next batch within its epoch, on this process.
    """

    def __init__(
        self, data: ImageData, sharding: Sharding, augment: Augment, seed: int, workers: int
    ) -> None:
        """Start at the first batch of epoch 0 of the training split of `data`."""
        self.data = data
        self.sharding = sharding
        self.augment = augment
        self.seed = seed
        self.epoch = 0
        self.batch = 0
        self._workers = workers
        self._ordered = (-1, torch.empty(0))
        self._fill = torch.tensor(data.mean).mul(255.0).round()
        if len(self) == 0:
            raise DataError(
                f"{data.name} has {len(data.train)} training images, too few for one batch of "
                f"{sharding.batch_size} on {sharding.world_size} process(es): lower the batch size "
                "or bring more images"
            )

    def __len__(self) -> int:
        """Return the number of batches that this process gets in one epoch."""
        return len(self.data.train) // self.sharding.batch_size * self.sharding.accumulate

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the position to the end of its epoch.

        Images are normalised, float32, shape (B, C, H, W); labels are int64, shape (B,).
        """
        # A generator: the position is read when the first batch is asked for, not before.
        number = self.epoch
        epoch = Epoch(self.seed, number, self.augment)
        for batch, (images, labels) in enumerate(self._read(epoch, self.batch), start=self.batch):
            last = batch + 1 == len(self)
            self.epoch, self.batch = (number + 1, 0) if last else (number, batch + 1)
            step, part = divmod(batch, self.sharding.accumulate)
            yield self._finish(images, epoch, step, part), labels

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of :meth:`state_dict`."""
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])

    def _read(self, epoch: Epoch, start: int) -> Iterator[Batch]:
        """Yield uint8 images and labels of this process from one batch to the epoch's end."""
        raise NotImplementedError

    def _indices(self, epoch: Epoch, step: int) -> Tensor:
        """Return numbers that identify the images of a whole step, int64, shape (batch_size,)."""
        if self._ordered[0] != epoch.number:
            random = generator(self.seed, "order", epoch.number)
            order = torch.randperm(len(self.data.train), generator=random)
            self._ordered = (epoch.number, order)
        first = step * self.sharding.batch_size
        return self._ordered[1][first : first + self.sharding.batch_size]

    def _finish(self, images: Tensor, epoch: Epoch, step: int, part: int) -> Tensor:
        size = (int(images.shape[-2]), int(images.shape[-1]))
        indices = self._indices(epoch, step)
        draws = draw_batch(
            self.augment, indices, size, seed=self.seed, epoch=epoch.number, step=step
        )
        mine = draws.rows(self.sharding.rows(part))
        images = augment_batch(images, mine, cutout=self.augment.cutout, fill=self._fill)
        return self.data.normalise(images)


class _IndexedTrainLoader(TrainLoader):
    """Batches of a split whose images can be read in any order."""

    def __init__(self, split: ArraySplit | StoredSplit, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._split = split

    def _read(self, epoch: Epoch, start: int) -> Iterator[Batch]:
        parts = [divmod(batch, self.sharding.accumulate) for batch in range(start, len(self))]
        groups = [self._indices(epoch, step)[self.sharding.rows(part)] for step, part in parts]
        size = self.data.image_shape[1:]
        return read(self._split, size, groups, epoch=epoch, workers=self._workers)


class _ShardTrainLoader(TrainLoader):
    """Batches of streamed shards; the number of workers is part of what decides their order."""

    def __init__(
        self, split: ShardSplit, data: ImageData, sharding: Sharding, *arguments: Any
    ) -> None:
        self._split = split
        if len(split.urls) < sharding.world_size:
            raise DataError(
                f"{data.name} has {len(split.urls)} shards for {sharding.world_size} processes, "
                "which read one each at least: write more, smaller shards"
            )
        super().__init__(data, sharding, *arguments)

    def __len__(self) -> int:
        """Return the number of batches that every process gets, whichever shards it draws."""
        fewest = len(self._split.urls) // self.sharding.world_size
        images = sum(sorted(self._split.counts)[:fewest])
        steps = images // (self.sharding.batch_size // self.sharding.world_size)
        return steps * self.sharding.accumulate

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch, and what else its content depends on."""
        world = {"workers": self._workers, "world_size": self.sharding.world_size}
        return {**super().state_dict(), **world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of :meth:`state_dict`."""
        found = (state["workers"], state["world_size"])
        if found != (self._workers, self.sharding.world_size) and state["batch"]:
            raise DataError(
                f"the run was stopped within an epoch with {found[0]} workers on {found[1]} "
                f"process(es), and is resumed with {self._workers} on {self.sharding.world_size}: "
                "the order of shards depends on both, use the same"
            )
        super().load_state_dict(state)

    def _read(self, epoch: Epoch, start: int) -> Iterator[Batch]:
        part = self.sharding.part_size
        stream = ShardStream(
            self._split,
            self.data.image_shape[1:],
            rank=self.sharding.rank,
            world_size=self.sharding.world_size,
            epoch=epoch,
            skip=start * part // CHUNK,
        )
        chunks = DataLoader(stream, batch_size=None, num_workers=self._workers)
        for batch, content in zip(range(len(self)), rebatch(chunks, part), strict=False):
            if batch >= start:
                yield content

    def _indices(self, epoch: Epoch, step: int) -> Tensor:
        # A stream has no numbers: coins are tossed for places in the epoch.
        del epoch
        first = step * self.sharding.batch_size
        return torch.arange(first, first + self.sharding.batch_size)


def train_loader(
    data: ImageData, sharding: Sharding, *, augment: Augment, seed: int, workers: int = 0
) -> TrainLoader:
    """Return the loader that fits how the training split of `data` is held.

    Args:
        data: Its training split is read.
        sharding: This process's part of each step.
        augment: What is done to the images.
        seed: Decides order and augmentation.
        workers: Processes that decode; not used where nothing is decoded.

    Raises:
        DataError: There are too few images or shards for one batch.
    """
    if isinstance(data.train, ShardSplit):
        return _ShardTrainLoader(data.train, data, sharding, augment, seed, workers)
    return _IndexedTrainLoader(data.train, data, sharding, augment, seed, workers)
