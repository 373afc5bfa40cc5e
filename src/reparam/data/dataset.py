"""What a data set is to the rest of the package: a frozen record with up to three splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from reparam.errors import DataError

__all__ = ["ArraySplit", "ImageData", "Split", "fingerprint_arrays"]


@runtime_checkable
class Split(Protocol):
    """One part of a data set: a number of labelled images, readable one at a time by position."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def image(self, index: int) -> Tensor:
        """Return one image as uint8 of shape (C, H, W)."""
        ...

    def label(self, index: int) -> int:
        """Return the class of one image."""
        ...


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
        """Check shapes and types once, so that loaders need not."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise DataError(f"images must be uint8 of shape (N, C, H, W), found {found}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise DataError(
                f"labels must be int64 of shape ({self.images.shape[0]},), one per image, found {found}"
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self.images.shape[0])

    def image(self, index: int) -> Tensor:
        """Return one image as uint8 of shape (C, H, W)."""
        return self.images[index]

    def label(self, index: int) -> int:
        """Return the class of one image."""
        return int(self.labels[index])

    def take(self, indices: Tensor) -> ArraySplit:
        """Return the images at `indices` (int64) as a split of their own."""
        return ArraySplit(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image data set.

    Attributes:
        name: Where it came from, as the user named it.
        class_names: One name per class, in label order.
        image_shape: (channels, height, width) of what a model sees.
        mean: Per-channel mean of the training images, in units of pixel value / 255.
        std: Per-channel standard deviation, same units.
        train: The images that a model is fitted to.
        validation: The images that choose between checkpoints and draw the curve.
        test: Images that no choice depends on, where the data has them.
        fingerprint: Hex digest of the images and labels; two data sets are the same when it is equal.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    test: Split | None
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 images, shape (..., C, H, W), as float32 with mean 0 and standard deviation 1 per channel.

        ``y = (x / 255 - mean) / std``
        """
        mean = torch.tensor(self.mean, device=images.device).mul_(255.0).view(-1, 1, 1)
        scale = (
            torch.tensor(self.std, device=images.device).mul_(255.0).reciprocal_().view(-1, 1, 1)
        )
        return images.to(torch.float32).sub_(mean).mul_(scale)

    def tensors(self, split: Split, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the images of a split as a model takes them, with their labels.

        Args:
            split: A split of this data set; its images must be of one size.
            limit: Take only this many, from the start.

        Returns:
            Float32 images, normalised, shape (N, C, H, W), and int64 labels, shape (N,).
        """
        count = len(split) if limit is None else min(limit, len(split))
        if isinstance(split, ArraySplit):
            return self.normalise(split.images[:count]), split.labels[:count]
        images = torch.stack([split.image(index) for index in range(count)])
        labels = torch.tensor([split.label(index) for index in range(count)], dtype=torch.int64)
        return self.normalise(images), labels

    def splits(self) -> Iterator[tuple[str, Split]]:
        """Yield the name and the content of every split that exists."""
        yield "train", self.train
        yield "validation", self.validation
        if self.test is not None:
            yield "test", self.test


def fingerprint_arrays(splits: Sequence[ArraySplit]) -> str:
    """Return a hex digest of the pixel values, the labels and their shapes."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().tobytes())
        digest.update(split.labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return per-channel mean and standard deviation of uint8 images (N, C, H, W), in units of value / 255."""
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(4096):
        values = chunk.to(torch.float64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1.0)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
