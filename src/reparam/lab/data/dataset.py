"""What a data set is to the rest of the package, and how a split of it is read once, in order."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from reparam._support.spelling import advice
from reparam.errors import InputError
from reparam.lab.data.batches import read, rebatch
from reparam.lab.data.shards import ShardStream
from reparam.lab.data.splits import ArraySplit, ShardSplit, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from reparam.lab.data.batches import Batch

_IMAGENET_MEAN: tuple[float, ...] = (0.485, 0.456, 0.406)
_IMAGENET_STD: tuple[float, ...] = (0.229, 0.224, 0.225)


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
        count = len(split) if limit is None else min(limit, len(split))
        size = max(1, min(count, 500))
        read = islice(eval_loader(self, split, batch_size=size), max(1, math.ceil(count / size)))
        images, labels = (torch.cat(parts)[:count] for parts in zip(*read, strict=True))
        return images, labels

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


def image_data(
    name: str,
    class_names: tuple[str, ...],
    splits: Mapping[str, Split],
    size: tuple[int, int],
    fingerprint: str,
) -> ImageData:
    """Put RGB images on record; without all of them in memory, normalised as ImageNet's are."""
    train, mean, std = splits["train"], _IMAGENET_MEAN, _IMAGENET_STD
    if isinstance(train, ArraySplit):
        mean, std = _channel_statistics(train.images)
    return ImageData(
        name=name,
        class_names=class_names,
        image_shape=(3, *size),
        mean=mean,
        std=std,
        train=train,
        validation=splits["validation"],
        test=splits.get("test"),
        fingerprint=fingerprint,
    )


@dataclass(frozen=True, eq=False)
class EvalLoader:
    """Every image of a split once, in batches; of several processes each reads its share.

    Batches can be short and processes may get one image or shard less than others, so that
    nothing is read twice.

    Attributes:
        data: Whose normalisation is used.
        length: Number of batches, at most.
        batches: Begins to read them, as uint8 images and labels.
    """

    data: ImageData
    length: int
    batches: Callable[[], Iterable[Batch]]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        """Yield normalised images, float32 (B, C, H, W), and labels, int64 (B,)."""
        for images, labels in self.batches():
            yield self.data.normalise(images), labels


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
    size = data.image_shape[1:]
    if isinstance(split, ShardSplit):
        stream = ShardStream(split, size, rank=rank, world_size=world_size)
        mine = sum(split.counts[shard] for shard in stream.shards())
        chunks = DataLoader(stream, batch_size=None, num_workers=workers)
        return EvalLoader(data, -(-mine // batch_size), partial(rebatch, chunks, batch_size))
    indices = torch.arange(rank, len(split), world_size)
    groups = [group for group in torch.split(indices, batch_size) if len(group)]
    return EvalLoader(data, len(groups), partial(read, split, size, groups, workers=workers))


def fingerprint_arrays(splits: Sequence[ArraySplit]) -> str:
    """Return a hex digest of the pixel values, the labels and their shapes."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().tobytes())
        digest.update(split.labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
