"""What a data set is to the rest of the package: a frozen record with up to three splits."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from reparam._support.spelling import advice
from reparam.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

__all__ = [
    "ArraySplit",
    "ImageData",
    "ImageSource",
    "ShardSplit",
    "Split",
    "StoredSplit",
    "channel_statistics",
    "fingerprint_arrays",
]


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
            needed = f"int64 of shape ({self.images.shape[0]},), one for each image"
            raise DataError(f"labels must be {needed}, found {found}")

    def __len__(self) -> int:
        """Return the number of images."""
        return int(self.images.shape[0])

    def take(self, indices: Tensor) -> ArraySplit:
        """Return the images at `indices` (int64) as a split of their own."""
        return ArraySplit(self.images[indices], self.labels[indices])


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
        """Return the number of images."""
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
        """Return the number of images."""
        return sum(self.counts)


Split: TypeAlias = ArraySplit | StoredSplit | ShardSplit


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image data set.

    Attributes:
        name: Where it came from, as the user named it.
        class_names: One name for each class, in label order.
        image_shape: (channels, height, width) of what a model sees.
        mean: Mean of each channel, in units of pixel value / 255.
        std: Standard deviation of each channel, same units.
        train: The images that a model is fitted to.
        validation: The images that draw the curve and choose the best checkpoint.
        test: Images that no choice depends on, where the data has them.
        fingerprint: Hex digest of what the data holds: equal for equal data sets.
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
        """Return uint8 images, shape (..., C, H, W), as float32: ``(x / 255 - mean) / std``."""
        mean = torch.tensor(self.mean, device=images.device).mul_(255.0).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).mul_(255.0).view(-1, 1, 1)
        return images.to(torch.float32).sub_(mean).mul_(std.reciprocal_())

    @torch.no_grad()
    def check_fits(self, model: Callable[[Tensor], object]) -> None:
        """Check that a model in eval mode takes the images and gives a value for each class.

        Raises:
            InputError: It does not.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logits = model(torch.zeros(2, *self.image_shape))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            raise InputError(
                f"the model does not take images of shape {self.image_shape}, which {self.name} "
                f"has ({error}); choose another image size"
                + advice(" with {image_size}", image_size=...)
                + " or another model"
            ) from error
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if found != (2, self.num_classes):
            raise InputError(
                f"the model returns {found} for 2 images, and {self.name} has {self.num_classes} "
                f"classes: needed (2, {self.num_classes})"
                + advice("; build the model with {num_classes}", num_classes=self.num_classes)
            )

    def splits(self) -> Iterator[tuple[str, Split]]:
        """Yield the name and the content of every split that exists."""
        yield "train", self.train
        yield "validation", self.validation
        if self.test is not None:
            yield "test", self.test

    def tensors(self, split: Split, *, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the images of a split as a model takes them, with their labels.

        Args:
            split: A split of this data set.
            limit: Take only this many, from the start.

        Returns:
            Float32 images, normalised, shape (N, C, H, W), and int64 labels, shape (N,).
        """
        from reparam.lab.data.evaluation import eval_loader  # loaders know data sets

        count = len(split) if limit is None else min(limit, len(split))
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for some_images, some_labels in eval_loader(
            self, split, batch_size=max(1, min(count, 500))
        ):
            images.append(some_images)
            labels.append(some_labels)
            if sum(map(len, labels)) >= count:
                break
        return torch.cat(images)[:count], torch.cat(labels)[:count]

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw training images, the same at every call, as :meth:`tensors` returns them.

        Files are often sorted by class, so that the first ones would be of one class; shards, which
        can only be read as streams, give their first images.
        """
        split = self.train
        if not isinstance(split, ShardSplit):
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
            split = split.take(order[:count])
        return self.tensors(split, limit=count)


def fingerprint_arrays(splits: Sequence[ArraySplit]) -> str:
    """Return a hex digest of the pixel values, the labels and their shapes."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().tobytes())
        digest.update(split.labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images, shape (N, C, H, W).

    Both in units of pixel value / 255; a channel of one value gets the deviation of one level.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(images, 4096):
        values = chunk.to(torch.float64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1.0)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
