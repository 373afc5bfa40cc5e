"""The embedded data set: scikit-learn's 1,797 handwritten digits, 8x8 grey pixels, ten classes."""

from __future__ import annotations

import torch
from torch.nn import functional

from reparam._support.optional import require
from reparam.lab.data.dataset import ImageData, fingerprint_arrays, image_data
from reparam.lab.data.splits import ArraySplit, dealt_by_class

_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1


def open_digits(*, image_size: int | None = None) -> ImageData:
    """Open the digits, split 70 : 10 : 20 into train, validation and test within every class.

    Args:
        image_size: Height and width in pixels, by bilinear interpolation; 8 (as they are) when
            None.

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
    images = grey.round().clamp(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)  # as models take RGB
    whole = ArraySplit(images, labels)
    parts = [whole.take(part) for part in dealt_by_class(labels, _counts)]
    splits = dict(zip(("train", "validation", "test"), parts, strict=True))
    names = tuple(str(digit) for digit in range(10))
    size = (images.shape[-2], images.shape[-1])
    return image_data("digits", names, splits, size, fingerprint_arrays(parts))


def _counts(members: int) -> tuple[int, int, int]:
    test, validation = round(members * _TEST_SHARE), round(members * _VALIDATION_SHARE)
    return members - test - validation, validation, test
