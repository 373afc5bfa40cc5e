"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8x8 grey pixels, ten classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reparam._support.optional import require
from reparam.lab.data._seeds import generator
from reparam.lab.data.dataset import ImageData, channel_statistics, fingerprint_arrays
from reparam.lab.data.splits import ArraySplit

__all__ = ["open_digits"]

_SPLIT_SEED = 2021
"""Fixed, so that every run of every version holds out the same images."""
_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1


def open_digits(*, image_size: int | None = None, channels: int = 3) -> ImageData:
    """Open the digits, split 70 : 10 : 20 into train, validation and test within every class.

    Args:
        image_size: Height and width in pixels, by bilinear interpolation; 8 (as they are) when
            None.
        channels: The grey value is repeated this many times; 3 fits the models that take RGB.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = require("sklearn.datasets", extra="train", purpose="the digits data set")
    bunch = datasets.load_digits()
    grey = torch.from_numpy(bunch.images).to(torch.float32)[:, None] * (255.0 / 16.0)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    if image_size is not None and image_size != grey.shape[-1]:
        size = (image_size, image_size)
        grey = functional.interpolate(grey, size=size, mode="bilinear", align_corners=False)
    images = grey.round().clamp(0, 255).to(torch.uint8).repeat(1, channels, 1, 1)
    whole = ArraySplit(images, labels)
    train, validation, test = (whole.take(part) for part in _stratified(labels))
    mean, std = channel_statistics(train.images)
    return ImageData(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        image_shape=(channels, images.shape[-2], images.shape[-1]),
        mean=mean,
        std=std,
        train=train,
        validation=validation,
        test=test,
        fingerprint=fingerprint_arrays((train, validation, test)),
    )


def _stratified(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of train, validation and test, each in ascending order."""
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator(_SPLIT_SEED, label))]
        tests = round(len(members) * _TEST_SHARE)
        validations = round(len(members) * _VALIDATION_SHARE)
        sizes = [len(members) - tests - validations, validations, tests]
        for part, chosen in zip(parts, members.split(sizes), strict=True):
            part.append(chosen)
    train, validation, test = (torch.cat(part).sort().values for part in parts)
    return train, validation, test
