"""From a file to named tensors: safe reading, and the wrappers that training code puts around."""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam._support.optional import require
from reparam._support.spelling import advice
from reparam.errors import CheckpointError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
    "shadow",
)
"""Entries under which training code keeps the weights, beside those of :data:`_AVERAGED`."""

_AVERAGED = re.compile(r"(?:.*[_.])?(?:ema|swa|averaged?|avg)(?:[_.].*)?", re.IGNORECASE)
"""Entries with averaged weights (``ema``, ``model_ema_state_dict``, ``swa_model``). They win, for
they are what the reported accuracy of a training run belongs to."""

_NOT_CHECKPOINTS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with: git lfs pull"),
    (b"<!DOCTYPE", "an HTML page; download the file itself"),
    (b"<html", "an HTML page; download the file itself"),
    (b"\x89HDF", "an HDF5 file; save the weights with torch.save or safetensors"),
)

_DATA_ONLY = (
    ("argparse", "Namespace"),  # timm keeps the arguments of the run
    ("types", "SimpleNamespace"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("numpy._core.multiarray", "scalar"),  # a metric
    ("numpy", "dtype"),
    ("numpy.dtypes", "Float64DType"),
    ("numpy.dtypes", "Float32DType"),
    ("numpy.dtypes", "Int64DType"),
)
"""Classes that hold values and run nothing, which training code stores beside the weights."""


@dataclass(frozen=True)
class Weights:
    """Named tensors, and where in the file they were.

    Attributes:
        tensors: The tensors by the names that the file gives them, on the CPU.
        wrapper: The entries that led to them, joined by dots; empty if they were at the top.
    """

    tensors: Mapping[str, Tensor]
    wrapper: str = ""


def read_weights(path: str | os.PathLike[str], *, key: str | None = None) -> Weights:
    """Read the named tensors of a checkpoint without running any code from it.

    Args:
        path: A ``.safetensors`` file, or whatever ``torch.save`` wrote, under any other suffix.
        key: The entry that holds the weights, dotted if nested. By default it is looked for, and
            averaged weights (``model_ema``, ``swa_model`` and the like) are preferred.

    Raises:
        CheckpointError: There is no such file, it is no checkpoint, it needs more than tensors and
            plain containers to be read, or it holds no named tensors.
        MissingExtraError: The file is ``.safetensors`` and the package safetensors is missing.
    """
    file = Path(path)
    if not file.is_file():
        what = (
            "a folder" if file.is_dir() else "not a plain file" if file.exists() else "no such file"
        )
        raise CheckpointError(f"cannot read weights from {file}: {what}")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    return _entry(content, key, file) if key else _unwrapped(content, file)


def listed(items: list[str] | tuple[str, ...], limit: int = 6) -> str:
    """Join names for a message, the first few only.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown


def _read_safetensors(file: Path) -> object:
    safetensors = require("safetensors.torch", extra="deploy", purpose=f"Reading {file}")
    error_type = require("safetensors", extra="deploy", purpose=f"Reading {file}").SafetensorError
    try:
        return safetensors.load_file(file)
    except (error_type, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is no safetensors file: {error}{_lookalike(file)}"
        ) from error


def _read_torch(file: Path) -> object:
    zipped = zipfile.is_zipfile(file)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_data_only()):
            # What torch has to say of an odd file is said better by the error below.
            warnings.simplefilter("ignore")
            # Mapped, the tensors are paged in while they are copied, and not held twice.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # bytes that are no checkpoint lead the unpickler to any error
        if needed := _python_objects(file, str(error), zipped=zipped):
            raise CheckpointError(
                f"{file} contains more than tensors: reading it would run code for "
                f"{listed(needed)}. Only tensors in plain containers are read. If you trust the "
                f"file, convert it where those can be imported: content = torch.load('{file.name}',"
                f" weights_only=False), then torch.save(content['state_dict'], 'weights.pth') for "
                f"the entry that holds the weights, or content.state_dict() if it is a whole model"
                f"{_by_its_own(file, needed)}"
            ) from error
        if zipped and _is_torchscript(file):
            raise CheckpointError(
                f"{file} is a TorchScript archive; save its weights instead: "
                f"torch.save(torch.jit.load('{file.name}').state_dict(), 'weights.pth')"
            ) from error
        raise CheckpointError(
            f"{file} is no checkpoint that torch.load can read{_lookalike(file)}"
            f"{_told_briefly(error)}"
        ) from error


def _by_its_own(file: Path, needed: list[str]) -> str:
    """How a whole model of a library is given, which that library reads."""
    known = any(name.partition(".")[0] == "ultralytics" for name in needed)
    return f"; or, as MODEL, let ultralytics read it: ultralytics:{file}" if known else ""


def _is_torchscript(file: Path) -> bool:
    """Whether an archive holds code beside its numbers, as those of ``torch.jit.save`` do."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _data_only() -> list[Any]:
    """Those of the harmless classes that are there: numpy need not be, nor under this name."""
    modules = ((sys.modules.get(module), name) for module, name in _DATA_ONLY)
    return [found for module, name in modules if (found := getattr(module, name, None))]


def _told_briefly(error: Exception) -> str:
    """The first line of what torch says, where it says something of the file."""
    said = str(error).strip().partition("\n")[0]
    return f": {said}" if said and not isinstance(error, OSError) else ""


def _python_objects(file: Path, message: str, *, zipped: bool) -> list[str]:
    """List the classes and functions that a refused pickle refers to."""
    if zipped:
        try:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        except Exception:  # noqa: BLE001 - a damaged file, or a torch from before this function
            found = []
        allowed = {f"{module}.{name}" for module, name in _DATA_ONLY}
        return sorted(set(found) - allowed)
    return re.findall(r"GLOBAL ([\w.]+)", message)


def _lookalike(file: Path) -> str:
    """Say what a file is that is often found in place of a checkpoint."""
    try:
        with file.open("rb") as handle:
            start = handle.read(32)
    except OSError:  # the caller has that to report already
        return ""
    if not start:
        return "; it is empty"
    if start.startswith(b"PK") and not zipfile.is_zipfile(file):
        return "; its end is missing: it was cut short while it was written or copied"
    for prefix, what in _NOT_CHECKPOINTS:
        if start.startswith(prefix):
            return f"; it is {what}"
    return ""


def _entry(content: object, key: str, file: Path) -> Weights:
    """Follow the entry that the user names."""
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            raise CheckpointError(f"{file} has no entry {key!r}; it holds {_described(content)}")
        content = content[part]
    inner = _unwrapped(content, file)
    return Weights(inner.tensors, ".".join(filter(None, (key, inner.wrapper))))


def _unwrapped(content: object, file: Path) -> Weights:
    """Follow the usual entries down to the named tensors."""
    found = _search(content, file)
    if found is not None:
        return found
    elsewhere = max(_named_tensors(content), default=None)
    hint = advice("; name the entry that holds them with {key}", key=...)
    if elsewhere:
        hint = advice("; there are some in {key}", key=elsewhere[1])
    raise CheckpointError(
        f"{file} holds {_described(content)}; needed are named tensors, at the top or under one of "
        f"{', '.join(WRAPPERS)}, or an average of them under a name like model_ema{hint}"
    )


def _search(content: object, file: Path, path: tuple[str, ...] = ()) -> Weights | None:
    """Look for named tensors at the top and in the usual entries, averaged ones first."""
    if not isinstance(content, Mapping):
        return None
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return Weights({str(name): value for name, value in content.items()}, ".".join(path))
    averaged = [name for name in content if _AVERAGED.fullmatch(str(name))]
    for name in (*averaged, *(name for name in WRAPPERS if name in content)):
        found = _search(content[name], file, (*path, str(name)))
        if found is not None:
            return found
        if name in averaged and _holds_tensors(content[name]):
            where = ".".join((*path, str(name)))
            raise CheckpointError(
                f"{file} holds averaged weights in {where!r}, of which no names are known: "
                f"{_described(content[name])}"
                + advice("; name another entry with {key} to load weights as they were", key=...)
            )
    return None


def _holds_tensors(content: object) -> bool:
    """Whether there are weights somewhere inside, and not numbers alone."""
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list | tuple):
        return any(map(_holds_tensors, content))
    return isinstance(content, Tensor) and content.dim() > 0


def _named_tensors(content: object, path: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """Yield the number of tensors and the dotted name of every entry that holds nothing else."""
    if isinstance(content, Mapping):
        if path and content and all(isinstance(value, Tensor) for value in content.values()):
            yield len(content), ".".join(path)
            return
        for name, value in content.items():
            yield from _named_tensors(value, (*path, str(name)))


def _described(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    return f"a dict with the entries {listed([str(name) for name in content])}"
