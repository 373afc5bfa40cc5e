"""What each kind of image becomes, and that everything else is refused by its name."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("torchvision")

from PIL import Image

from reparam.errors import DataError
from reparam.lab.data._images import decode, view

RED = [255, 0, 0]
WHITE = [255, 255, 255]


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def deep_grey(*values: int) -> Image.Image:
    pixels = b"".join(struct.pack("<H", value) for value in values)
    return Image.frombytes("I;16", (len(values), 1), pixels)


def palette(*, transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=1) if transparent else encoded(image)


def two(mode: str, first: Any, second: Any) -> Image.Image:
    image = Image.new(mode, (2, 1), first)
    image.putpixel((1, 0), second)
    return image


CASES = {
    "RGB": (encoded(two("RGB", (255, 0, 0), (1, 2, 3))), [RED, [1, 2, 3]]),
    "grey": (encoded(two("L", 0, 77)), [[0] * 3, [77] * 3]),
    "one bit": (encoded(two("1", 0, 1)), [[0] * 3, WHITE]),
    "grey of 16 bits, PNG": (encoded(deep_grey(257 * 9, 65535)), [[9] * 3, WHITE]),
    "grey of 16 bits, TIFF": (encoded(deep_grey(257 * 9, 65535), "tiff"), [[9] * 3, WHITE]),
    "grey of 16 bits, PGM": (encoded(deep_grey(257 * 9, 65535), "ppm"), [[9] * 3, WHITE]),
    "palette": (palette(transparent=False), [RED, [0, 0, 255]]),
    "palette with transparency": (palette(transparent=True), [RED, WHITE]),
    "alpha": (encoded(two("RGBA", (255, 0, 0, 255), (9, 9, 9, 0))), [RED, WHITE]),
    "half alpha": (
        encoded(two("RGBA", (0, 0, 0, 255), (0, 0, 0, 51))),
        [[0] * 3, [204] * 3],
    ),
    "grey and alpha": (encoded(two("LA", (5, 255), (5, 0))), [[5] * 3, WHITE]),
    "a colour that is transparent": (
        encoded(two("RGB", (255, 0, 0), (1, 2, 3)), transparency=(1, 2, 3)),
        [RED, WHITE],
    ),
    "CMYK": (encoded(two("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "tiff"), [RED, WHITE]),
    "YCbCr": (encoded(two("YCbCr", (0, 128, 128), (255, 128, 128)), "tiff"), [[0] * 3, WHITE]),
    "animation": (
        encoded(
            two("RGB", (255, 0, 0), (0, 0, 0)),
            save_all=True,
            append_images=[Image.new("RGB", (2, 1), (0, 255, 0))],
        ),
        [RED, [0] * 3],
    ),
    "pages": (
        encoded(
            two("RGB", (255, 0, 0), (0, 0, 0)),
            "tiff",
            save_all=True,
            append_images=[Image.new("RGB", (5, 5))],
        ),
        [RED, [0] * 3],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_each_kind_of_image_becomes(case: str) -> None:
    content, expected = CASES[case]
    image = decode(content, case)
    assert image.dtype == torch.uint8
    assert image.permute(1, 2, 0).reshape(-1, 3).tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_rotation_is_carried_out(orientation: int) -> None:
    upright = torch.tensor([[10, 20, 30], [40, 50, 60]], dtype=torch.uint8)
    stored = {
        1: upright,
        2: upright.flip(1),
        3: upright.flip(0, 1),
        4: upright.flip(0),
        5: upright.T,
        6: upright.rot90(1),
        7: upright.flip(0, 1).T,
        8: upright.rot90(-1),
    }[orientation].contiguous()
    image = Image.frombytes("L", (stored.shape[1], stored.shape[0]), bytes(stored.numpy()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert torch.equal(decode(encoded(image, exif=exif), "turned")[0], upright)


def test_a_broken_note_of_the_camera_leaves_the_pixels() -> None:
    content = encoded(two("RGB", (255, 0, 0), (0, 0, 0)), "jpeg", exif=b"Exif\0\0no TIFF header")
    assert decode(content, "broken note").shape == (3, 1, 2)


@pytest.mark.parametrize("size", [(1, 1), (224, 224), (8, 12)])
@pytest.mark.parametrize("stored", [(1, 1), (1, 30_000), (30_000, 1), (1, 2), (8, 8)])
def test_images_of_a_pixel_s_width_become_the_size_that_is_asked_for(
    stored: tuple[int, int], size: tuple[int, int]
) -> None:
    shown = view(torch.full((3, *stored), 7, dtype=torch.uint8), size)
    assert shown.shape == (3, *size)
    assert (shown == 7).all()


def chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says that it has side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


WHOLE = encoded(Image.effect_noise((40, 40), 50.0))
REFUSED = {
    "empty": b"",
    "text": b"no image",
    "cut off": WHOLE[:300],
    "only a header": WHOLE[:20],
    "a bomb that Pillow warns of": bomb(10_000),
    "a bomb that Pillow refuses": bomb(60_000),
    "floating point": encoded(Image.new("F", (2, 2), 0.5), "tiff"),
    "integers of 32 bits": encoded(Image.new("I", (2, 2), 70_000), "tiff"),
    "CIELAB": encoded(Image.new("LAB", (2, 2)), "tiff"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_by_name(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of broken files
        with pytest.raises(DataError, match=r"cat/7\.png"):
            decode(REFUSED[case], "cat/7.png")
