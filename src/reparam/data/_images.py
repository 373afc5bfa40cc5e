"""Decoding and resizing of single images."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch

from reparam._optional import require
from reparam.data._seeds import derive_seed
from reparam.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.data.augment import Augment

__all__ = ["SUFFIXES", "augment_image", "decode", "from_pil", "view"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff"})
"""What counts as an image, by the end of its name in lower case."""

_SMALL = 64
"""Up to this side, in pixels, an image is scaled to fit and not cropped in evaluation."""
_MARGIN = 8 / 7
"""Larger ones are scaled to 8/7 of the size and cropped, as ImageNet's 256 and 224."""


def decode(content: bytes, where: str) -> Tensor:
    """Return an encoded image as uint8 RGB, shape (3, H, W).

    Raises:
        DataError: The bytes are no image; `where` says whose they are.
        MissingExtraError: Pillow is not installed.
    """
    pil = require("PIL.Image", extra="train", purpose="Decoding images")
    try:
        with pil.open(io.BytesIO(content)) as image:
            return from_pil(image)
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
        raise DataError(f"{where} cannot be read as an image: {error}") from error


def from_pil(image: Any) -> Tensor:
    """Return a Pillow image as uint8 RGB, shape (3, H, W)."""
    rgb = image.convert("RGB")
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return flat.view(rgb.height, rgb.width, 3).permute(2, 0, 1).contiguous()


def view(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image, uint8 (3, H, W), at `size` (height, width) as evaluation sees it."""
    if tuple(image.shape[-2:]) == size:
        return image
    functional = _transforms().functional
    margin = 1.0 if max(size) <= _SMALL else _MARGIN
    scale = margin * max(size[0] / image.shape[-2], size[1] / image.shape[-1])
    scaled = [
        max(side, round(scale * old)) for side, old in zip(size, image.shape[-2:], strict=True)
    ]
    resized = functional.resize(image, scaled, antialias=True)
    cropped: Tensor = functional.center_crop(resized, list(size))
    return cropped


def augment_image(
    image: Tensor, size: tuple[int, int], augment: Augment, *, seed: int, epoch: int, index: int
) -> Tensor:
    """Return an image, uint8 (3, H, W), at `size`, cropped and colour-shifted at random.

    The result is a function of the arguments alone, whichever process works it out.
    """
    transforms = _transforms()
    # torchvision draws from the global random state: give it one of its own and put ours back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "image", epoch, index))
        if augment.resized_crop > 0:
            crop = transforms.RandomResizedCrop(size, (augment.resized_crop, 1.0), antialias=True)
            image = crop(image)
        else:
            image = view(image, size)
        if augment.randaugment > 0:
            shift = transforms.RandAugment(augment.randaugment, augment.randaugment_magnitude)
            image = shift(image)
    return image


def _transforms() -> Any:
    return require("torchvision.transforms.v2", extra="train", purpose="Resizing images")
