"""ImageFolder trees, in a directory or in a zip file that stays packed.

torchvision's own ``ImageFolder`` reads directories alone, takes split folders for classes, and
leaves images to whoever opens them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

import torch

from reparam.errors import DataError
from reparam.lab.data._images import SUFFIXES, decode
from reparam.lab.data.splits import StoredSplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}

_MOST_BYTES = 1 << 30
"""No encoded image is larger; what a zip file says beyond is made to fill the memory."""


@dataclass(frozen=True, eq=False)
class FolderContent:
    """What was found in one tree.

    Attributes:
        class_names: Sorted.
        splits: By ``"train"``, ``"validation"``, ``"test"``; ``"all"`` where no folder says which.
        fingerprint: Hex digest of names and sizes (in a zip file: and checksums).
    """

    class_names: tuple[str, ...]
    splits: dict[str, StoredSplit]
    fingerprint: str


class _Tree:
    """A tree of files, of which the images are numbered in the order of their names.

    Attributes:
        path: Where it is.
        names: Its images.
        empty: The outermost folders in and below which there is no image.
        digest: Hex digest of the images' names and what is known of them unread.
    """

    def __init__(self, path: Path, images: Mapping[str, str], folders: Iterable[str]) -> None:
        """Number the images, given with what goes into the digest."""
        self.path = path
        self.names = tuple(sorted(images))
        filled = {str(parent) for name in images for parent in PurePosixPath(name).parents}
        empty = {name for name in folders if name not in filled and _is_shown(name)}
        self.empty = sorted(n for n in empty if str(PurePosixPath(n).parent) not in empty)
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(os.fsencode(f"{name}\0{images[name]}\0"))
        self.digest = digest.hexdigest()

    def read(self, index: int) -> torch.Tensor:
        """Return one image at the size it is stored in, uint8, shape (3, H, W)."""
        name = self.names[index]
        return decode(self.content(name), f"{self.path}:{name}")

    def content(self, name: str) -> bytes:
        """Return one file."""
        raise NotImplementedError


class _Directory(_Tree):
    """The images under a directory, links followed."""

    def __init__(self, path: Path) -> None:
        names, below = [], []
        for folder, folders, files in os.walk(path, followlinks=True, onerror=_raise_unlisted):
            _check_no_cycle(Path(folder), path)
            folders[:] = sorted(filter(_is_shown, folders))
            relative = Path(folder).relative_to(path)
            below += [(relative / name).as_posix() for name in folders]
            names += [(relative / file).as_posix() for file in files if _is_image(file)]
        super().__init__(path, {n: str(_regular(path / n).st_size) for n in sorted(names)}, below)

    def content(self, name: str) -> bytes:
        file = self.path / name
        _regular(file)  # reading a pipe would wait for ever
        try:
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error


class _Zip(_Tree):
    """The images in a zip file; each process opens it anew, for a file position is not shared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        entries = self._file().infolist()
        images = {e.filename: f"{e.file_size}\0{e.CRC}" for e in entries if _is_image(e.filename)}
        super().__init__(path, images, [e.filename.rstrip("/") for e in entries if e.is_dir()])

    def content(self, name: str) -> bytes:
        archive = self._file()
        size = archive.getinfo(name).file_size
        if size > _MOST_BYTES:
            raise DataError(f"{self.path}:{name} is said to unpack to {size:,} bytes; no image is")
        try:
            return archive.read(name)
        except Exception as error:  # broken, encrypted or of a foreign method: each its own kind
            raise DataError(f"{self.path}:{name} cannot be unpacked: {error}") from error

    def _file(self) -> zipfile.ZipFile:
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            try:
                self._opened = (process, zipfile.ZipFile(self.path))
            except OSError as error:
                raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
            except Exception as error:  # a broken index leads zipfile to errors of many kinds
                raise DataError(f"{self.path} is not a zip file, or is cut off: {error}") from error
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}


def read_folder(path: Path) -> FolderContent:
    """List an ImageFolder tree: ``<class>/<image>``, with or without split folders above.

    Folders named train, val, valid, validation or test above the classes are splits, also when
    there is only one; a single folder around everything is looked through. Hidden files and folders
    are passed over.

    Raises:
        DataError: There is no such file, no image in it, or no class folder; a folder or file
            cannot be read; a class has no images, or none to train on.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist (looked in {Path.cwd()})")
    if not path.is_dir():
        _regular(path)
    archive = _Directory(path) if path.is_dir() else _Zip(path)
    if not archive.names:
        kinds = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{path} holds no images (files ending in {kinds})")
    parts = [PurePosixPath(name).parts[:-1] for name in archive.names]
    parts, only = _look_through(parts)
    if min(map(len, parts)) == 0:
        stray = archive.names[min(range(len(parts)), key=lambda index: len(parts[index]))]
        raise DataError(
            f"{path}: {stray} is in no class folder; needed <class>/<image>, or "
            "<split>/<class>/<image> with splits named train, val or test"
        )
    return _sort_out(archive, parts, only)


def _look_through(parts: list[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], str]:
    """Strip what all images share above the classes; return the split that it names, or "all"."""
    only = "all"
    while len(heads := {part[:1] for part in parts}) == 1 and min(map(len, parts)) >= 2:
        only = _SPLIT_NAMES.get(next(iter(heads))[0].lower(), only)
        parts = [part[1:] for part in parts]
    return parts, only


def _sort_out(archive: _Tree, parts: list[tuple[str, ...]], only: str) -> FolderContent:
    heads = {part[0].lower() for part in parts}
    has_splits = heads <= _SPLIT_NAMES.keys() and min(map(len, parts)) >= 2
    _check_all_splits(archive, parts)
    above = len(PurePosixPath(archive.names[0]).parts) - 1 - len(parts[0]) + has_splits
    _check_filled(archive, depth=above + 1)
    names = [part[1] if has_splits else part[0] for part in parts]
    split_names = [_SPLIT_NAMES[part[0].lower()] if has_splits else only for part in parts]
    class_names = tuple(sorted(set(names)))
    _check_trained_on(archive, names, split_names)
    number = {name: label for label, name in enumerate(class_names)}
    labels = torch.tensor([number[name] for name in names], dtype=torch.int64)
    splits = {}
    for split in Counter(split_names):
        members = [index for index, name in enumerate(split_names) if name == split]
        indices = torch.tensor(members, dtype=torch.int64)
        splits[split] = StoredSplit(archive, indices, labels[indices])
    return FolderContent(class_names, splits, archive.digest)


def _check_filled(archive: _Tree, *, depth: int) -> None:
    """Refuse a class folder without images: it would vanish and shift the labels of the others."""
    for name in archive.empty:
        if len(PurePosixPath(name).parts) <= depth:
            kinds = ", ".join(sorted(SUFFIXES))
            raise DataError(
                f"the folder {archive.path}:{name} holds no images (files ending in {kinds}); fill "
                "it or remove it, for without it a class would be missing"
            )


def _check_all_splits(archive: _Tree, parts: list[tuple[str, ...]]) -> None:
    """Refuse folders beside splits, which would make classes of the splits."""
    split = {part[0] for part in parts if part[0].lower() in _SPLIT_NAMES}
    others = {part[0] for part in parts} - split
    if split and others and all(len(part) >= 2 for part in parts if part[0] in split):
        raise DataError(
            f"{archive.path}: {min(others)!r} stands beside {', '.join(sorted(split))}, which look "
            "like splits with classes in them; move it elsewhere, or the splits into one folder"
        )


def _check_trained_on(archive: _Tree, names: list[str], splits: list[str]) -> None:
    """Refuse a class that only the validation or test images have: no net could learn it."""
    if "train" not in splits:
        return
    trained = {name for name, split in zip(names, splits, strict=True) if split == "train"}
    for name, split in zip(names, splits, strict=True):
        if name not in trained:
            raise DataError(
                f"{archive.path}: the class {name!r} of the {split} images has no training images; "
                "every class needs some, under the same name"
            )


def _check_no_cycle(folder: Path, root: Path) -> None:
    """Refuse a link to a folder above itself, through which each image would be found for ever."""
    here = folder.parent.resolve()
    if folder != root and folder.is_symlink() and folder.resolve() in (here, *here.parents):
        raise DataError(f"{folder} is a link to a folder above it; remove the link")


def _raise_unlisted(error: OSError) -> NoReturn:
    raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}") from error


def _regular(file: Path) -> os.stat_result:
    """What the system says of a file, which a pipe or a device is not."""
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{file} is not a plain file; needed an image, or a zip file of images")
    return found


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES and _is_shown(name)


def _is_shown(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not any(part.startswith(".") or part == "__MACOSX" for part in parts)
