"""Make the two zips that the CIFAR-10 experiments read: 50,000 and 10,000 images as JPEG files.

    python benchmarks/make_cifar10.py --download        # by torchvision, 170 MB, into data/
    python benchmarks/make_cifar10.py --root DIR        # from what torchvision left in DIR before
    python benchmarks/make_cifar10.py --folder DIR      # DIR/train/<class>/*, DIR/test/<class>/*

Images are stored as ``train/<class>/NNNN.jpg`` and ``test/<class>/NNNN.jpg``, quality 75 and half
the colour resolution, as those behind the committed results; the encoder's version may change some
bytes. JPEG costs a little accuracy against the original arrays, so the results say "CIFAR-10
(JPEG)". The experiments look in ``data/`` of this checkout first.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tables import ROOT

from reparam._support.files import atomic_path

__all__ = ["TEST", "TRAIN"]

_PLACES = (ROOT / "data", ROOT.parent / "shared" / "data")
_DATA = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
TRAIN = _DATA / "cifar10-train.zip"
TEST = _DATA / "cifar10-test.zip"


def from_torchvision(root: Path, split: str, *, download: bool) -> Iterator[tuple[str, Any]]:
    """Class names and images of one split, after torchvision has compared the files' checksums."""
    from torchvision.datasets import CIFAR10

    data = CIFAR10(root, train=split == "train", download=download)
    for image, label in data:
        yield data.classes[label], image


def from_folder(folder: Path, split: str) -> Iterator[tuple[str, Any]]:
    """Class names and images of one split of a folder, in the order of the files' names."""
    from PIL import Image

    found = sorted(path for path in (folder / split).glob("*/*") if path.is_file())
    if not found:
        msg = f"{folder / split} holds no folder of images for each class"
        raise SystemExit(msg)
    for path in found:
        with Image.open(path) as image:
            yield path.parent.name, image.convert("RGB")


def write_zip(out: Path, split: str, images: Iterable[tuple[str, Any]], quality: int) -> None:
    """Write one split; the same images give the same bytes."""
    counts: Counter[str] = Counter()
    with atomic_path(out) as stage, zipfile.ZipFile(stage, "w", zipfile.ZIP_STORED) as packed:
        for name, image in images:
            stored = io.BytesIO()
            image.save(stored, "JPEG", quality=quality, subsampling="4:2:0")
            packed.writestr(
                zipfile.ZipInfo(f"{split}/{name}/{counts[name]:04}.jpg"), stored.getvalue()
            )
            counts[name] += 1
    print(f"{out}: {counts.total():,} images of {len(counts)} classes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="torchvision's folder")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch the files")
    parser.add_argument("--folder", type=Path, help="train/<class>/* and test/<class>/*")
    parser.add_argument("--out", type=Path, default=ROOT / "data")
    parser.add_argument("--quality", type=int, default=75)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images = (
            from_folder(options.folder, split)
            if options.folder
            else from_torchvision(options.root, split, download=options.download)
        )
        write_zip(options.out / f"cifar10-{split}.zip", split, images, options.quality)


if __name__ == "__main__":
    main()
