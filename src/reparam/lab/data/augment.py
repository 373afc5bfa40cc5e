"""Augmentation: what may be done to a training image, and the part that works on whole batches.

torchvision's transforms v2 draw once for all images of a batch, and called image by image they take
twelve times the processor time and more (512 images of 32 pixels flipped, shifted and cut).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reparam.lab.data._seeds import derive_seed, generator

Flip = Literal["none", "random", "alternate"]


@dataclass(frozen=True)
class Augment:
    """What is done to training images.

    Attributes:
        flip: Mirror left and right: never, by a coin toss per image and epoch, or in alternate
            epochs after one toss per image, so that two epochs show every image both ways (Jordan
            2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3.6).
        translate: Shift by up to this many pixels in each direction, mirroring what comes in at the
            border.
        cutout: Side in pixels of a square set to the mean (DeVries and Taylor 2017); 0 for none.
        resized_crop: Smallest share of the area that a random resized crop keeps; 0 for no such
            crop.
        randaugment: Number of RandAugment operations per image; 0 for none.
        randaugment_magnitude: Their magnitude, 0 to 30.
        mixup: Alpha of mixup's Beta(alpha, alpha); 0 for none.
        cutmix: Alpha of CutMix's Beta(alpha, alpha); 0 for none. With mixup too, each batch gets
            one of the two.
    """

    flip: Flip = "none"
    translate: int = 0
    cutout: int = 0
    resized_crop: float = 0.0
    randaugment: int = 0
    randaugment_magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def per_image(self) -> bool:
        """Whether something is asked for that works on one image at a time."""
        return self.resized_crop > 0 or self.randaugment > 0


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images: all that decides their order and augmentation.

    Attributes:
        seed: Of the run.
        number: 0 for the first.
        augment: What is done to them.
    """

    seed: int
    number: int
    augment: Augment


@dataclass(frozen=True, eq=False)
class BatchDraws:
    """The random choices for a batch of B images; each field is None when not asked for.

    Attributes:
        flip: bool, shape (B,).
        shift: int64, shape (B, 2): rows and columns.
        hole: int64, shape (B, 2): first row and column of the square that is cut out.
    """

    flip: Tensor | None
    shift: Tensor | None
    hole: Tensor | None

    def rows(self, rows: slice) -> BatchDraws:
        """Return the choices for some of the images."""
        fields = (self.flip, self.shift, self.hole)
        flip, shift, hole = (None if field is None else field[rows] for field in fields)
        return BatchDraws(flip, shift, hole)


def draw_batch(
    augment: Augment, indices: Tensor, size: tuple[int, int], *, seed: int, epoch: int, step: int
) -> BatchDraws:
    """Draw the choices for the images `indices` (int64, shape (B,)) of `size` (height, width).

    The result is a function of the arguments alone.
    """
    random = generator(seed, "augment", epoch, step)
    count = len(indices)
    flip = shift = hole = None
    if augment.flip == "random":
        flip = torch.rand(count, generator=random) < 0.5
    elif augment.flip == "alternate":
        flip = _first_toss(indices, seed) ^ (epoch % 2 == 1)
    if augment.translate > 0:
        reach = augment.translate
        shift = torch.randint(-reach, reach + 1, (count, 2), generator=random)
    if augment.cutout > 0:
        half = augment.cutout // 2
        centres = torch.rand(count, 2, generator=random) * torch.tensor(size)
        hole = centres.to(torch.int64) - half
    return BatchDraws(flip, shift, hole)


def augment_batch(images: Tensor, draws: BatchDraws, *, cutout: int, fill: Tensor) -> Tensor:
    """Return the images, shape (B, C, H, W), flipped, shifted and cut as drawn.

    One gather does the flip, the shift and the mirrored border. `fill`, shape (C,), is what a hole
    is filled with.
    """
    height, width = images.shape[-2:]
    if draws.flip is not None or draws.shift is not None:
        zero = torch.zeros(len(images), 1, dtype=torch.int64)
        down, right = (zero, zero) if draws.shift is None else draws.shift.split(1, dim=1)
        rows = _mirror(torch.arange(height) + down, height)
        columns = _mirror(torch.arange(width) + right, width)
        if draws.flip is not None:
            columns = torch.where(draws.flip[:, None], width - 1 - columns, columns)
        flat = (rows[:, :, None] * width + columns[:, None, :]).view(len(images), 1, height * width)
        flat = flat.to(images.device).expand(-1, images.shape[1], -1)
        images = images.flatten(2).gather(2, flat).view_as(images)
    if draws.hole is not None and cutout > 0:
        top, left = draws.hole.to(images.device).split(1, dim=1)
        in_rows = _inside(torch.arange(height, device=images.device), top, cutout)
        in_columns = _inside(torch.arange(width, device=images.device), left, cutout)
        mask = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        images = torch.where(mask, fill.to(images).view(1, -1, 1, 1), images)
    return images


def _first_toss(indices: Tensor, seed: int) -> Tensor:
    """Toss one coin per image: the parity of a mixed index, so that no table is kept."""
    offset = derive_seed(seed, "toss") & 0xFFFFFFFF
    mixed = (indices + offset) * 2654435761
    return ((mixed >> 17) ^ (mixed >> 29)) & 1 == 1


def _mirror(positions: Tensor, length: int) -> Tensor:
    """Reflect positions outside 0 .. length - 1 back inside, the border pixel not repeated."""
    if length == 1:
        return torch.zeros_like(positions)
    period = 2 * (length - 1)
    wrapped = positions % period
    return torch.minimum(wrapped, period - wrapped)


def _inside(positions: Tensor, start: Tensor, length: int) -> Tensor:
    return (positions >= start) & (positions < start + length)
