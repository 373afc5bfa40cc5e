"""The images of a split: in memory, in files, or in shards that are read as streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from reparam.errors import DataError
from reparam.lab.data._seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_DEALING_SEED = 2021
"""Fixed, so that every run of every version holds out the same images."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Images of one size held in memory.

    Attributes:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise DataError(f"images must be uint8 of shape (N, C, H, W), found {found}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            needed = f"int64 of shape ({self.images.shape[0]},), one for each image"
            raise DataError(f"labels must be {needed}, found {found}")

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def take(self, indices: Tensor) -> ArraySplit:
        """Return the images at `indices` (int64) as a split of their own."""
        return ArraySplit(self.images[indices], self.labels[indices])

    def read(self, position: int) -> Tensor:
        """Return one image, uint8, shape (C, H, W)."""
        return self.images[position]


class ImageSource(Protocol):
    """Images that are decoded when they are asked for; may be pickled into worker processes."""

    def read(self, index: int) -> Tensor:
        """Return one image at the size it is stored in, uint8, shape (3, H, W)."""
        ...


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """Images in files, of any size, each decoded when it is needed.

    Attributes:
        source: Reads one image.
        indices: Which images of the source, int64, shape (N,).
        labels: Their classes, int64, shape (N,).
    """

    source: ImageSource
    indices: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, positions: Tensor) -> StoredSplit:
        """Return the images at `positions` (int64) of this split as a split of their own."""
        return StoredSplit(self.source, self.indices[positions], self.labels[positions])

    def read(self, position: int) -> Tensor:
        """Return one image at the size it is stored in, uint8, shape (3, H, W)."""
        return self.source.read(int(self.indices[position]))


@dataclass(frozen=True)
class ShardSplit:
    """Images in tar files (WebDataset), read as streams.

    Attributes:
        urls: The shards; whatever WebDataset can open.
        counts: Number of images in each.
    """

    urls: tuple[str, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)


Split: TypeAlias = ArraySplit | StoredSplit | ShardSplit


def dealt_by_class(labels: Tensor, counts: Callable[[int], Sequence[int]]) -> tuple[Tensor, ...]:
    """Deal out the images of every class at random, the same on every machine.

    Args:
        labels: Their classes, int64, shape (N,).
        counts: How many images each part gets of a class of that many.

    Returns:
        For each part the positions of its images, int64, in ascending order.
    """
    dealt = []
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator(_DEALING_SEED, label))
        dealt.append(members[order].split(list(counts(len(members)))))
    return tuple(torch.cat(part).sort().values for part in zip(*dealt, strict=True))
