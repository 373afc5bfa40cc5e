"""Decoding and resizing of single images.

Pillow reads them: ``torchvision.io.decode_image`` knows no BMP, TIFF or PPM, shows what is hidden
behind transparency, and leaves grey of 16 bits as it is.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.optional import require
from reparam.errors import DataError
from reparam.lab.data._seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.lab.data.augment import Epoch

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff"})
"""What counts as an image, by the end of its name in lower case."""

_SMALL = 64
"""Up to this side, in pixels, an image is scaled to fit and not cropped in evaluation."""
_MARGIN = 8 / 7
"""Larger ones are scaled to 8/7 of the size and cropped, as ImageNet's 256 and 224."""


_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
"""What Pillow calls grey of 16 bits."""
_DEEP_GREY_FORMATS = ("PNG", "PPM")
"""Formats whose grey of more than 8 bits is of 16, also where Pillow holds it in 32."""
_EXIF_ORIENTATION = 0x0112
_MOST_ELONGATED = 8
"""An image that is longer than this many times its width is cropped before it is scaled."""


def decode(content: bytes, where: str) -> Tensor:
    """Return an encoded image as uint8 RGB, shape (3, H, W), as :func:`from_pil` defines it.

    Raises:
        DataError: The bytes are no image, more pixels than Pillow thinks safe
            (``PIL.Image.MAX_IMAGE_PIXELS``), or of a kind without meaning as RGB; `where` says
            whose they are.
        MissingExtraError: Pillow is not installed.
    """
    pil = require("PIL.Image", extra="train", purpose="Decoding images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            with pil.open(io.BytesIO(content)) as image:
                return from_pil(image, where)
    except DataError:
        raise
    except (pil.DecompressionBombWarning, pil.DecompressionBombError) as error:
        raise DataError(
            f"{where} has more pixels than are safe to decode: {error}; make the image smaller, or "
            "raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        raise DataError(f"{where} cannot be read as an image: {error}") from error


def from_pil(image: Any, where: str) -> Tensor:
    """Return a Pillow image as uint8 RGB, shape (3, H, W), as a person would see it.

    Of an animation it is the first frame; a rotation that the camera noted (EXIF) is carried out;
    what is transparent shows white; grey of 16 bits is scaled to 8; palettes, CMYK, YCbCr and
    pictures of one bit become RGB as Pillow converts them, without colour profiles.

    Raises:
        DataError: Its pixels have no range that says what white is (floating point, integers of 32
            bits), or no meaning as RGB (CIELAB).
    """
    deep_grey = image.mode in _DEEP_GREY or (
        image.mode == "I" and image.format in _DEEP_GREY_FORMATS
    )
    image = _upright(image)
    if deep_grey:
        return _from_deep_grey(image)
    if image.mode in ("I", "F", "LAB"):
        raise DataError(
            f"{where} holds pixels of the kind {image.mode!r}, for which no range says what is "
            "black and what is white; store it as RGB or grey of 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = image.copy()
        page.paste((255, 255, 255, 255), (0, 0, *image.size))
        page.alpha_composite(image)
        image = page
    rgb = image.convert("RGB")
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return flat.view(rgb.height, rgb.width, 3).permute(2, 0, 1).contiguous()


def _upright(image: Any) -> Any:
    """Carry out the rotation that the camera noted; a note that cannot be read says nothing."""
    ops = require("PIL.ImageOps", extra="train", purpose="Decoding images")
    try:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:  # noqa: BLE001 - the pixels are as good as without the note
        return image
    return ops.exif_transpose(image) if turned else image


def _from_deep_grey(image: Any) -> Tensor:
    """Scale grey of 16 bits to 8, rounded: 65535 is 257 x 255."""
    flat = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
    grey = flat.clamp(0, 65535).to(torch.float64).div(257).round()
    return grey.to(torch.uint8).view(1, image.height, image.width).repeat(3, 1, 1)


def view(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image, uint8 (3, H, W), at `size` (height, width) as evaluation sees it."""
    if tuple(image.shape[-2:]) == size:
        return image
    functional = _transforms().functional
    image = _middle(image, size)
    margin = 1.0 if max(size) <= _SMALL else _MARGIN
    scale = margin * max(size[0] / image.shape[-2], size[1] / image.shape[-1])
    scaled = [
        max(side, round(scale * old)) for side, old in zip(size, image.shape[-2:], strict=True)
    ]
    if scaled == [1, 1]:  # at which torch's own kernel fails
        resized = image.to(torch.float32).mean((-2, -1), keepdim=True).round().to(torch.uint8)
    else:
        resized = functional.resize(image, scaled, antialias=True)
    cropped: Tensor = functional.center_crop(resized, list(size))
    return cropped


def _middle(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut far too long images to their middle, which is all that a crop of `size` can show.

    Scaled whole, an image of 20,000 x 1 pixels would take gigabytes.
    """
    height, width = image.shape[-2:]
    longest = (
        math.ceil(_MOST_ELONGATED * width * size[0] / size[1]),
        math.ceil(_MOST_ELONGATED * height * size[1] / size[0]),
    )
    top, left = (
        max(0, old - most) // 2 for old, most in zip((height, width), longest, strict=True)
    )
    return image[..., top : top + longest[0], left : left + longest[1]]


def shown(image: Tensor, size: tuple[int, int], epoch: Epoch | None, index: int) -> Tensor:
    """Return an image, uint8 (3, H, W), at `size`, as evaluation sees it or an epoch of training.

    In an epoch that asks for it, it is cropped and its colours are changed at random; the result is
    a function of the arguments alone, whichever process works it out.
    """
    if epoch is None or not epoch.augment.per_image:
        return view(image, size)
    augment, transforms = epoch.augment, _transforms()
    # torchvision draws from the global random state: give it one of its own and put ours back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(epoch.seed, "image", epoch.number, index))
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
