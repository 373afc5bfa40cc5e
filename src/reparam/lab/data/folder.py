"""ImageFolder trees, in a directory or in a zip file that stays packed."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol

import torch

from reparam.errors import DataError
from reparam.lab.data._images import SUFFIXES, decode
from reparam.lab.data.splits import StoredSplit

__all__ = ["FolderContent", "read_folder"]

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


class _Archive(Protocol):
    """A tree of files.

    Attributes:
        path: Where it is.
        names: Its images.
        empty: Folders with no image in or below them.
        digest: Of names and sizes.
    """

    path: Path
    names: tuple[str, ...]
    empty: tuple[str, ...]
    digest: str

    def content(self, name: str) -> bytes: ...


class _Directory:
    """The images under a directory, links followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        digest = hashlib.sha256()
        names, below = [], []
        for folder, folders, files in os.walk(path, followlinks=True, onerror=_raise_unlisted):
            _check_no_cycle(Path(folder), path)
            folders[:] = sorted(filter(_is_shown, folders))
            relative = Path(folder).relative_to(path)
            below += [(relative / name).as_posix() for name in folders]
            names += [(relative / file).as_posix() for file in files if _is_image(file)]
        self.names = tuple(sorted(names))
        self.empty = _without_images(below, self.names)
        for name in self.names:
            size = os.fsencode(str(_regular(path / name).st_size))
            digest.update(os.fsencode(name) + b"\0" + size + b"\0")
        self.digest = digest.hexdigest()

    def content(self, name: str) -> bytes:
        file = self.path / name
        _regular(file)  # reading a pipe would wait for ever
        try:
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error


class _Zip:
    """The images in a zip file; each process opens it anew, for a file position is not shared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        digest = hashlib.sha256()
        entries = sorted(self._file().infolist(), key=lambda entry: entry.filename)
        folders = [entry.filename.rstrip("/") for entry in entries if entry.is_dir()]
        entries = [entry for entry in entries if _is_image(entry.filename)]
        for entry in entries:
            digest.update(f"{entry.filename}\0{entry.file_size}\0{entry.CRC}\0".encode())
        self.names = tuple(entry.filename for entry in entries)
        self.empty = _without_images(folders, self.names)
        self.digest = digest.hexdigest()

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


@dataclass(frozen=True, eq=False)
class _FolderSource:
    """Reads the n-th image of a tree."""

    archive: _Archive

    def read(self, index: int) -> torch.Tensor:
        name = self.archive.names[index]
        return decode(self.archive.content(name), f"{self.archive.path}:{name}")


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
    archive: _Archive = _Directory(path) if path.is_dir() else _Zip(path)
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


def _sort_out(archive: _Archive, parts: list[tuple[str, ...]], only: str) -> FolderContent:
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
    source = _FolderSource(archive)
    splits = {}
    for split in Counter(split_names):
        members = [index for index, name in enumerate(split_names) if name == split]
        indices = torch.tensor(members, dtype=torch.int64)
        splits[split] = StoredSplit(source, indices, labels[indices])
    return FolderContent(class_names, splits, archive.digest)


def _check_filled(archive: _Archive, *, depth: int) -> None:
    """Refuse a class folder without images: it would vanish and shift the labels of the others."""
    for name in archive.empty:
        if len(PurePosixPath(name).parts) <= depth:
            kinds = ", ".join(sorted(SUFFIXES))
            raise DataError(
                f"the folder {archive.path}:{name} holds no images (files ending in {kinds}); fill "
                "it or remove it, for without it a class would be missing"
            )


def _check_all_splits(archive: _Archive, parts: list[tuple[str, ...]]) -> None:
    """Refuse folders beside splits, which would make classes of the splits."""
    split = {part[0] for part in parts if part[0].lower() in _SPLIT_NAMES}
    others = {part[0] for part in parts} - split
    if split and others and all(len(part) >= 2 for part in parts if part[0] in split):
        raise DataError(
            f"{archive.path}: {min(others)!r} stands beside {', '.join(sorted(split))}, which look "
            "like splits with classes in them; move it elsewhere, or the splits into one folder"
        )


def _check_trained_on(archive: _Archive, names: list[str], splits: list[str]) -> None:
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


def _without_images(folders: list[str], images: tuple[str, ...]) -> tuple[str, ...]:
    """The outermost of the folders in and below which there is no image."""
    filled = {str(parent) for name in images for parent in PurePosixPath(name).parents}
    empty = {name for name in folders if name not in filled and _is_shown(name)}
    return tuple(sorted(n for n in empty if str(PurePosixPath(n).parent) not in empty))


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
