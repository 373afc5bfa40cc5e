"""Inputs that nobody should give, and what has to hold when somebody does.

For public calls and for commands: nothing is written, and what was given is, byte for byte and
attribute for attribute, what it was.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from checking import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["MODELS", "PATHS", "SAMPLES", "content_of", "leaving_no_trace"]


def content_of(folder: Path) -> dict[str, str]:
    """What lies in a folder: every name, with a digest of the bytes or the kind of entry."""
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*"))}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_dir():
        return "folder"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "neither"


@contextmanager
def leaving_no_trace(*folders: Path, models: tuple[object, ...] = ()) -> Iterator[None]:
    """Raise unless folders and models are afterwards what they were, also behind an exception."""
    before = [content_of(folder) for folder in folders]
    snapshots = [(m, Snapshot.of(m)) for m in models if _has_numbers(m)]
    with ExitStack() as stack:
        stack.callback(_assert_same, folders, before, snapshots)
        yield


def _assert_same(folders, before, snapshots) -> None:
    for folder, content in zip(folders, before, strict=True):
        now = content_of(folder)
        assert now == content, f"{folder} holds other files: {now.items() ^ content.items()}"
    for model, snapshot in snapshots:
        snapshot.assert_unchanged(model)


def _has_numbers(model: object) -> bool:
    if not isinstance(model, nn.Module):
        return False
    held = (*model.parameters(), *model.buffers())
    return not any(t.is_meta or nn.parameter.is_lazy(t) for t in held)


def _small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))


MODELS = {
    "None": lambda: None,
    "a text": lambda: "resnet18",
    "a number": lambda: 3,
    "a class": lambda: nn.Conv2d,
    "a dict": _small().state_dict,
    "a list": lambda: [_small().eval()],
    "a tensor": lambda: torch.zeros(3),
    "on the meta device": lambda: _small().to("meta").eval(),
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8)).eval(),
    "in training mode": _small,
}
"""What is no model that can be worked on, given to arguments that take a model."""

SAMPLES = {
    "a text": lambda: "image.png",
    "a number": lambda: 3,
    "no argument": lambda: (),
    "other channels": lambda: torch.zeros(2, 5, 12, 12),
    "one dimension": lambda: torch.zeros(3),
    "too small": lambda: torch.zeros(2, 3, 2, 2),
    "float64": lambda: torch.zeros(2, 3, 12, 12, dtype=torch.float64),
    "integers": lambda: torch.zeros(2, 3, 12, 12, dtype=torch.int64),
    "texts": lambda: ("a", "b"),
    "a list of numbers": lambda: [1.0, 2.0],
    "an array": lambda: torch.zeros(2, 3, 12, 12).numpy(),
    "two arguments": lambda: (torch.zeros(2, 3, 12, 12), torch.zeros(2, 3, 12, 12)),
    "an unknown keyword": lambda: {"image": torch.zeros(2, 3, 12, 12)},
    "no sample": lambda: torch.zeros(0, 3, 12, 12),
    "on the meta device": lambda: torch.zeros(2, 3, 12, 12, device="meta"),
    "None": lambda: None,
}
"""What a net of images with three channels in float32 does not run on."""

PATHS = {
    "None": None,
    "a number": 3,
    "bytes": b"net",
    "nothing": "",
    "a zero byte": "net\0.safetensors",
    "a list": ["net.safetensors"],
    "in no folder": "missing/net.safetensors",
    "a folder": ".",
    "of no known suffix": "net.xyz",
    "without a suffix": "net",
}
"""What is no path of a file that can be written or read, relative to an empty folder."""
