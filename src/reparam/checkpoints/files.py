"""From a file to named tensors: safe reading, and the wrappers that training code puts around."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reparam._optional import require
from reparam.errors import CheckpointError

if TYPE_CHECKING:
    import os

__all__ = ["Weights", "listed", "read_weights"]

WRAPPERS = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
)
"""Entries under which training code keeps the weights. Averaged weights come first: they are what
the reported accuracy of a training run belongs to."""

_NOT_CHECKPOINTS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with: git lfs pull"),
    (b"<!DOCTYPE", "an HTML page; download the file itself"),
    (b"<html", "an HTML page; download the file itself"),
    (b"\x89HDF", "an HDF5 file; save the weights with torch.save or safetensors"),
)

# What unpickling bytes that are no checkpoint has been seen to raise.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
)


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
            averaged weights (``model_ema`` and the like) are preferred.

    Raises:
        CheckpointError: There is no such file, it is no checkpoint, it needs more than tensors and
            plain containers to be read, or it holds no named tensors.
        MissingExtraError: The file is ``.safetensors`` and the package safetensors is missing.
    """
    file = Path(path)
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
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
    except (error_type, OSError) as error:
        raise CheckpointError(
            f"{file} is no safetensors file: {error}{_lookalike(file)}"
        ) from error


def _read_torch(file: Path) -> object:
    zipped = zipfile.is_zipfile(file)
    try:
        with warnings.catch_warnings():
            # What torch has to say of an odd file is said better by the error below.
            warnings.simplefilter("ignore")
            # Mapped, the tensors are paged in while they are copied, and not held twice.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except _UNREADABLE as error:
        if needed := _python_objects(file, str(error), zipped=zipped):
            raise CheckpointError(
                f"{file} contains more than tensors: reading it would run code for "
                f"{listed(needed)}. Only tensors in plain containers are read. If you trust the "
                f"file, convert it where those can be imported: content = torch.load('{file.name}',"
                f" weights_only=False), then torch.save(content['state_dict'], 'weights.pth') for "
                f"the entry that holds the weights, or content.state_dict() if it is a whole model"
            ) from error
        if zipped and "torchscript" in str(error).lower():
            raise CheckpointError(
                f"{file} is a TorchScript archive; save its weights instead: "
                f"torch.save(torch.jit.load('{file.name}').state_dict(), 'weights.pth')"
            ) from error
        raise CheckpointError(
            f"{file} is no checkpoint that torch.load can read{_lookalike(file)}: {error}"
        ) from error


def _python_objects(file: Path, message: str, *, zipped: bool) -> list[str]:
    """List the classes and functions that a refused pickle refers to."""
    if zipped:
        try:
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
        except _UNREADABLE:
            pass  # a damaged file, or a torch from before this function
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
    path: list[str] = []
    while isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return Weights({str(name): value for name, value in content.items()}, ".".join(path))
        filled = (k for k in WRAPPERS if isinstance(content.get(k), Mapping) and content[k])
        wrapper = next(filled, None)
        if wrapper is None:
            break
        path.append(wrapper)
        content = content[wrapper]
    where = f" in {'.'.join(path)!r}" if path else ""
    raise CheckpointError(
        f"{file} holds {_described(content)}{where}; needed are named tensors, at the top or "
        f"under one of {', '.join(WRAPPERS)} (or name the entry with key=...)"
    )


def _described(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    return f"a dict with the entries {listed([str(name) for name in content])}"
