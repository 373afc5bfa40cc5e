"""Files are written whole or not at all.

What is written goes into a hidden folder beside its destination, so that the last step is a rename
within one file system, which is atomic. Whatever goes wrong before it leaves the folder of the user
as it was. A process that is killed outright can leave that hidden folder (``.reparam-*``) behind,
never half a file under the name that was asked for; the next process that writes there removes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from reparam.errors import InputError, ReparamError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_PREFIX = ".reparam-"
_PACKAGES = (".mlpackage",)
"""Suffixes of folders that stand for one file."""
_MANIFEST = "Manifest.json"
_KEPT: ContextVar[frozenset[tuple[int, int]]] = ContextVar("kept", default=frozenset())

# What an OSError means to the person who chose the destination.
_DISK_FULL = {
    errno.ENOSPC: "no space is left on its disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or the process limit allows",
}
_NOT_WRITABLE = {
    errno.EACCES: "the folder is not writable",
    errno.EPERM: "the folder is not writable",
    errno.EROFS: "the file system is read-only",
}
_CLOSED = dict.fromkeys((errno.EACCES, errno.EPERM), "a folder on the way to it may not be entered")
# One file system block is the most that can be left when a write has just failed for lack of space.
_BLOCK_BYTES = 4096


@contextmanager
def staged_folder(folder: str | os.PathLike[str], *, main: str | None = None) -> Iterator[Path]:
    """Yield an empty folder inside ``folder`` whose files move up when the block ends well.

    For formats that are several files (a graph and its weights). If one of them cannot be moved,
    those before it are taken back. A file that is replaced keeps its permissions, a new one gets
    those of any new file, whatever the writer made of them.

    Args:
        folder: An existing folder that can be written.
        main: Name of the file that refers to the others. It has to be written, and moves last, so
            that whoever finds it finds all of it. Without it, the order is alphabetical.

    Yields:
        The temporary folder. What is written there may be of any name, but not in subfolders.

    Raises:
        InputError: The folder is missing or cannot be written, its disk is full, or something that
            is not a plain writable file stands where a file should go.
        ReparamError: The block did not write what it should have, or wrote a subfolder.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with staged_folder(folder, main="net.xml") as stage:
    ...         _ = (stage / "net.bin").write_bytes(bytes(4))
    ...         _ = (stage / "net.xml").write_text("<net/>")
    ...     sorted(os.listdir(folder))
    ['net.bin', 'net.xml']
    """
    destination = Path(folder)
    wanted = destination / main if main else destination
    with _stage(destination, wanted) as stage:
        with _disk_errors_explained(wanted):
            mode = _mode_of_a_new_file(stage)
            yield stage
            written = _written_files(stage, wanted, main)
            for file in written:
                _finish(file, destination / file.name, mode)
        with _explained(wanted, _NOT_WRITABLE | _DISK_FULL, others=True):
            _move_all(written, destination)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path of the same name that becomes ``path`` when the block ends well.

    Files that the block writes beside it (external data of an ONNX file, for example) move along.
    A symbolic link is followed: the file that it points to is replaced, the link stays. A package
    (``.mlpackage``) is a folder that is treated as a file; replacing one takes two renames.

    Args:
        path: The file to write. Its folder has to exist.

    Yields:
        A path with the name of ``path``, at which nothing exists yet.

    Raises:
        InputError: The folder of ``path`` is missing or cannot be written, its disk is full, or
            ``path`` is something else than a plain writable file.
        ReparamError: The block did not write the file.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    target = Path(os.path.realpath(path))
    _check_replaceable(target)
    with staged_folder(target.parent, main=target.name) as stage:
        yield stage / target.name


def check_destination(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before work is spent on what goes there.

    Raises:
        InputError: As for :func:`atomic_path`, as far as it can be told without writing.
    """
    target = Path(os.path.realpath(path))
    _check_folder(target.parent, target)
    _check_replaceable(target)
    if not _may_write(target.parent):
        raise _unwritable(target, _NOT_WRITABLE[errno.EACCES])


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text to ``path`` atomically, line ends as they are.

    Raises:
        InputError: As for :func:`atomic_path`.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write bytes to ``path`` atomically.

    Raises:
        InputError: As for :func:`atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def is_there(path: Path) -> bool:
    """Whether there is such a file, or a package in the form of a folder.

    >>> is_there(Path(__file__)), is_there(Path(__file__).parent)
    (True, False)
    """
    return path.is_file() or _is_package(path)


def _is_package(path: Path) -> bool:
    return path.suffix.lower() in _PACKAGES and (path / _MANIFEST).is_file()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what nobody asked for, which is gone behind the block."""
    with tempfile.TemporaryDirectory(prefix="reparam-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def kept(paths: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """Refuse to write over these files while the block runs, under whatever name they are found.

    Links of both kinds are seen through. What does not exist, or is no file, is passed over.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trained = Path(folder) / "trained.pth"
    ...     _ = trained.write_bytes(bytes(4))
    ...     Path(folder, "out.pth").hardlink_to(trained)
    ...     with kept([trained]):
    ...         write_text(Path(folder) / "out.pth", "")
    Traceback (most recent call last):
    reparam.errors.InputError: cannot write ...out.pth: it is an input ...
    """
    found = set()
    for path in paths:
        with suppress(OSError, ValueError):  # of names that no file can have
            status = Path(path).stat()
            if not stat.S_ISDIR(status.st_mode):
                found.add((status.st_dev, status.st_ino))
    token = _KEPT.set(_KEPT.get() | found)
    try:
        yield
    finally:
        _KEPT.reset(token)


@contextmanager
def _stage(folder: Path, wanted: Path) -> Iterator[Path]:
    """Yield a new hidden folder that is locked for as long as its process lives."""
    _check_folder(folder, wanted)
    _clear_left_over(folder)
    # The name comes first: a signal may end the block as soon as the folder is there.
    stage, lock = folder / f"{_PREFIX}{secrets.token_hex(8)}", None
    try:
        with _explained(wanted, _NOT_WRITABLE | _DISK_FULL, others=True):
            lock = _make_locked(stage)
        yield stage
    finally:
        _remove(stage)
        if lock is not None:
            os.close(lock)


def _make_locked(stage: Path) -> int | None:
    """Make a folder and lock it, before another process takes it for one that was left over."""
    while True:
        stage.mkdir(mode=stat.S_IRWXU)
        lock = _lock(stage, wait=True)
        if stage.exists():
            return lock
        if lock is not None:
            os.close(lock)


def _remove(stage: Path) -> None:
    try:
        shutil.rmtree(stage, ignore_errors=True)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)  # a signal comes once
        raise


def _lock(stage: Path, *, wait: bool) -> int | None:
    """Lock a folder; None where another process has, and where folders cannot be locked."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(stage, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _clear_left_over(folder: Path) -> None:
    """Remove what killed processes left behind: their folders, which nobody holds a lock on."""
    for stage in folder.glob(f"{_PREFIX}*"):
        lock = None if stage.is_symlink() or not stage.is_dir() else _lock(stage, wait=False)
        if lock is not None:
            shutil.rmtree(stage, ignore_errors=True)
            os.close(lock)


def _check_folder(folder: Path, wanted: Path) -> None:
    """Refuse a folder that is not there, or is none."""
    with _explained(wanted, _CLOSED):
        if folder.is_dir():
            return
        found = "is not a folder" if folder.exists() else "does not exist"
    raise InputError(
        f"cannot write {wanted}: {folder} {found}; create that folder or choose another path"
    )


@contextmanager
def _explained(wanted: Path, reasons: Mapping[int, str], *, others: bool = False) -> Iterator[None]:
    """Name the destination in the errors that the system gives reasons for, or in all of them."""
    try:
        yield
    except OSError as error:
        reason = reasons.get(error.errno or 0, str(error) if others else "")
        if not reason:
            raise
        raise _unwritable(wanted, reason) from error


def _mode_of_a_new_file(stage: Path) -> int:
    """Ask the file system by making a file: reading the umask means setting it, in all threads."""
    probe = stage / "mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


@contextmanager
def _disk_errors_explained(wanted: Path) -> Iterator[None]:
    """Turn what a full disk makes a writer raise into one kind of error; pass on the rest."""
    try:
        with _explained(wanted, _DISK_FULL):
            yield
    except (ReparamError, OSError):
        raise
    except Exception as error:
        if _tells_of_a_full_disk(error, wanted.parent):
            raise _unwritable(wanted, _DISK_FULL[errno.ENOSPC]) from error
        raise


def _tells_of_a_full_disk(error: Exception, folder: Path) -> bool:
    """Recognise the errors of writers in C++ and Rust, which are of kinds of their own.

    Some quote the system (safetensors); others (torch) do not, but leave the disk as full as it is.
    """
    quoted = os.strerror(errno.ENOSPC) in str(error)
    return quoted or shutil.disk_usage(folder).free < _BLOCK_BYTES


def _unwritable(wanted: Path, reason: str) -> InputError:
    return InputError(
        f"cannot write {wanted}: {reason}; nothing was changed there. "
        "Make room or permission for it, or choose another path"
    )


def _written_files(stage: Path, wanted: Path, main: str | None) -> list[Path]:
    """List the files in the order in which they have to move."""
    written = sorted(stage.iterdir(), key=lambda entry: (entry.name == main, entry.name))
    if not written or (main and written[-1].name != main):
        raise ReparamError(
            f"nothing was written to {wanted}: its writer ended without an error and without a file"
        )
    for entry in written:
        if entry.is_symlink() or not is_there(entry):
            raise ReparamError(
                f"cannot write {wanted}: {entry.name!r} beside it is not a plain file, and only "
                "files can be put in place atomically"
            )
        _check_replaceable(stage.parent / entry.name)
    return written


def _check_replaceable(target: Path) -> None:
    """Refuse what a rename would silently destroy: a device, a write-protected file."""
    with _explained(target, _CLOSED):
        if not target.exists():
            return
        found = target.stat()
    if (found.st_dev, found.st_ino) in _KEPT.get():
        raise InputError(
            f"cannot write {target}: it is an input of what is done, and would be overwritten; "
            "choose another path"
        )
    if not is_there(target):
        kind = "a folder" if target.is_dir() else "not a plain file"
        raise InputError(f"cannot write {target}: it is {kind}; choose another path")
    if not _may_write(target):
        raise InputError(
            f"cannot write {target}: the file is write-protected; make it writable, delete it, or "
            "choose another path"
        )


def _may_write(path: Path) -> bool:
    """Ask for the user whose rights count, where the system tells that one from the real user."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _finish(file: Path, target: Path, mode: int) -> None:
    """Give a written file its permissions and force it to the disk, ahead of the rename."""
    if file.is_dir():
        for entry in (file, *file.rglob("*")):
            if entry.is_file():
                _finish(entry, entry, mode)
            entry.chmod(mode | (mode & 0o444) >> 2 if entry.is_dir() else mode)
        return
    file.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else mode)
    with file.open("r+b") as handle:
        os.fsync(handle.fileno())


def _move_all(written: list[Path], folder: Path) -> None:
    """Move the files up; if one cannot be moved, put back what stood where the others went."""
    former = Path(tempfile.mkdtemp(dir=written[-1].parent))
    with ExitStack() as undo:
        for file in written:
            target, aside = folder / file.name, former / file.name
            # A file in the place of the last one is replaced at once; a package no rename replaces.
            if file is not written[-1] or _is_package(target):
                undo.callback(_put_back, file, target, aside)
                if target.exists():
                    target.replace(aside)
            file.replace(target)
        undo.pop_all()
    _flush_folder(folder)


def _put_back(file: Path, target: Path, former: Path) -> None:
    if former.exists():
        former.replace(target)
    elif not file.exists():
        target.unlink()


def _flush_folder(folder: Path) -> None:
    """Make the renames last through a power cut, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
