"""Single images, and chunks of a stream, on their way into batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.data import Dataset

from reparam.lab.data._images import augment_image, view
from reparam.lab.data.splits import ArraySplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from reparam.lab.data.augment import Augment
    from reparam.lab.data.splits import StoredSplit

    Batch: TypeAlias = tuple[Tensor, Tensor]

__all__ = ["Images", "rebatch"]


class Images(Dataset[Any]):
    """Single images by position, at one size; augmented when an epoch is given."""

    def __init__(
        self,
        split: ArraySplit | StoredSplit,
        shape: tuple[int, int, int],
        *,
        augment: Augment | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self._split = split
        self._size = shape[1:]
        self._augment = augment if augment is not None and augment.per_image else None
        self._seed = seed
        self._epoch = epoch

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        split = self._split
        stored = split.images[position] if isinstance(split, ArraySplit) else split.read(position)
        label = int(split.labels[position])
        if self._augment is None:
            return view(stored, self._size), label
        image = augment_image(
            stored,
            self._size,
            self._augment,
            seed=self._seed,
            epoch=self._epoch,
            index=position,
        )
        return image, label


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
