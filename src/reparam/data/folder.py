"""ImageFolder trees, in a directory or in a zip file that stays packed."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch

from reparam.data._images import SUFFIXES, decode
from reparam.data.dataset import StoredSplit
from reparam.errors import DataError

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
    path: Path
    names: tuple[str, ...]
    digest: str

    def content(self, name: str) -> bytes: ...


class _Directory:
    """The images under a directory, links followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        digest = hashlib.sha256()
        names = []
        for folder, folders, files in os.walk(path, followlinks=True):
            folders.sort()
            relative = Path(folder).relative_to(path)
            names += [(relative / file).as_posix() for file in files if _is_image(file)]
        self.names = tuple(sorted(names))
        for name in self.names:
            digest.update(f"{name}\0{(path / name).stat().st_size}\0".encode())
        self.digest = digest.hexdigest()

    def content(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _Zip:
    """The images in a zip file; each process opens it anew, for a file position is not shared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        digest = hashlib.sha256()
        entries = sorted(self._file().infolist(), key=lambda entry: entry.filename)
        entries = [entry for entry in entries if _is_image(entry.filename)]
        for entry in entries:
            digest.update(f"{entry.filename}\0{entry.file_size}\0{entry.CRC}\0".encode())
        self.names = tuple(entry.filename for entry in entries)
        self.digest = digest.hexdigest()

    def content(self, name: str) -> bytes:
        return self._file().read(name)

    def _file(self) -> zipfile.ZipFile:
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            try:
                self._opened = (process, zipfile.ZipFile(self.path))
            except zipfile.BadZipFile as error:
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
    there is only one; a single folder around everything is looked through.

    Raises:
        DataError: There is no such file, no image in it, or no class folder.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist (looked in {Path.cwd()})")
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
    names = [part[1] if has_splits else part[0] for part in parts]
    split_names = [_SPLIT_NAMES[part[0].lower()] if has_splits else only for part in parts]
    class_names = tuple(sorted(set(names)))
    number = {name: label for label, name in enumerate(class_names)}
    labels = torch.tensor([number[name] for name in names], dtype=torch.int64)
    source = _FolderSource(archive)
    splits = {}
    for split in Counter(split_names):
        members = [index for index, name in enumerate(split_names) if name == split]
        indices = torch.tensor(members, dtype=torch.int64)
        splits[split] = StoredSplit(source, indices, labels[indices])
    return FolderContent(class_names, splits, archive.digest)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return path.suffix.lower() in SUFFIXES and not hidden
