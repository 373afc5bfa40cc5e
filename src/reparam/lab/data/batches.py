"""Single images, and chunks of a stream, on their way into batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset

from reparam.lab.data._images import shown
from reparam.lab.data.splits import ArraySplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from reparam.lab.data.augment import Epoch
    from reparam.lab.data.splits import StoredSplit

    Batch: TypeAlias = tuple[Tensor, Tensor]


def read(
    split: ArraySplit | StoredSplit,
    size: tuple[int, int],
    groups: Sequence[Tensor],
    *,
    epoch: Epoch | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield a batch of uint8 images and labels for each group of positions in a split.

    Args:
        split: What is read.
        size: (height, width) of the images; of a split in memory they have it already.
        groups: Positions, int64.
        epoch: Decides how single images are augmented; None for evaluation.
        workers: Processes that decode; not used where no image is touched alone.
    """
    if isinstance(split, ArraySplit) and (epoch is None or not epoch.augment.per_image):
        for group in groups:
            part = split.take(group)
            yield part.images, part.labels
        return
    sampler = [group.tolist() for group in groups]
    yield from DataLoader(_Images(split, size, epoch), batch_sampler=sampler, num_workers=workers)


class _Images(Dataset[Any]):
    """Single images by position, at one size."""

    def __init__(
        self, split: ArraySplit | StoredSplit, size: tuple[int, int], epoch: Epoch | None
    ) -> None:
        self._split, self._size, self._epoch = split, size, epoch

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image = shown(self._split.read(position), self._size, self._epoch, position)
        return image, int(self._split.labels[position])


def rebatch(chunks: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Yield the content of the chunks in batches of `size`, the last one shorter."""
    held: list[Batch] = []
    count = 0
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk[1])
        while count >= size:
            images, labels = (torch.cat(parts) for parts in zip(*held, strict=True))
            yield images[:size], labels[:size]
            held = [(images[size:], labels[size:])]
            count -= size
    if count:
        images, labels = (torch.cat(parts) for parts in zip(*held, strict=True))
        yield images, labels
