"""A split read once, in stored order, by one process or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from reparam.lab.data.batches import Images, rebatch
from reparam.lab.data.shards import ShardStream
from reparam.lab.data.splits import ArraySplit, ShardSplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from reparam.lab.data.batches import Batch
    from reparam.lab.data.dataset import ImageData
    from reparam.lab.data.splits import Split

__all__ = ["EvalLoader", "eval_loader"]


class EvalLoader:
    """Every image of a split once, in batches; of several processes each reads its share.

    Batches can be short and processes may get one image or shard less than others, so that
    nothing is read twice.
    """

    def __init__(self, length: int, data: ImageData, batches: Iterable[Batch]) -> None:
        """Normalise `length` uint8 batches of `data`."""
        self._length = length
        self._data = data
        self._batches = batches

    def __len__(self) -> int:
        """Return the number of batches, at most."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        """Yield normalised images, float32 (B, C, H, W), and labels, int64 (B,)."""
        for images, labels in self._batches:
            yield self._data.normalise(images), labels


def eval_loader(
    data: ImageData,
    split: Split,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> EvalLoader:
    """Return a loader of a split of `data`, in stored order.

    Args:
        data: Whose normalisation is used.
        split: What is read.
        batch_size: Images of one batch.
        rank: This process.
        world_size: Number of processes.
        workers: Processes that decode; not used where nothing is decoded.
    """
    if isinstance(split, ShardSplit):
        stream = ShardStream(split, data.image_shape[1:], rank=rank, world_size=world_size)
        mine = sum(split.counts[shard] for shard in stream.shards())
        chunks = DataLoader(stream, batch_size=None, num_workers=workers)
        return EvalLoader(-(-mine // batch_size), data, _Rebatched(chunks, batch_size))
    indices = torch.arange(rank, len(split), world_size)
    groups = [group for group in torch.split(indices, batch_size) if len(group)]
    if isinstance(split, ArraySplit):
        return EvalLoader(len(groups), data, _Gathered(split, groups))
    sampler = [group.tolist() for group in groups]
    images = Images(split, data.image_shape)
    return EvalLoader(
        len(groups), data, DataLoader(images, batch_sampler=sampler, num_workers=workers)
    )


@dataclass(frozen=True, eq=False)
class _Gathered:
    """Groups of images of a split in memory."""

    split: ArraySplit
    groups: list[Tensor]

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups:
            part = self.split.take(group)
            yield part.images, part.labels


@dataclass(frozen=True, eq=False)
class _Rebatched:
    """Chunks of any length as batches of one."""

    chunks: Iterable[Batch]
    size: int

    def __iter__(self) -> Iterator[Batch]:
        return rebatch(self.chunks, self.size)
