"""Files are written whole or not at all.

A file is written under a temporary name in the folder it is meant for, so that the last step is a
rename within one file system, which is atomic. Whatever goes wrong before it leaves the folder as
it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["atomic_path", "staged_folder", "write_text"]


@contextmanager
def staged_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder inside ``folder`` whose files move up when the block ends well.

    For formats that are several files (a graph and its weights). Each file is moved atomically, in
    alphabetical order, so that ``net.bin`` is in place before the ``net.xml`` that refers to it.

    Raises:
        OSError: The folder does not exist or cannot be written.
    """
    target = Path(folder)
    stage = Path(tempfile.mkdtemp(prefix=".reparam-", dir=target))
    try:
        yield stage
        for written in sorted(stage.iterdir()):
            _flush(written)
        for written in sorted(stage.iterdir()):
            written.replace(target / written.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path of the same name that becomes ``path`` when the block ends well.

    Raises:
        OSError: The folder of ``path`` does not exist or cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    target = Path(path)
    with staged_folder(target.parent) as stage:
        yield stage / target.name


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text to ``path`` atomically.

    Raises:
        OSError: The folder of ``path`` does not exist or cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    """Force a written file to the disk, so that a full disk is noticed before the rename."""
    if path.is_file():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
