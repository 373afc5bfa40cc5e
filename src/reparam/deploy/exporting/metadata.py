"""What an exported file says about itself."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam._support.arguments import PATH, takes
from reparam._support.files import is_there, write_text
from reparam._support.version import __version__
from reparam.deploy.exporting.formats import formats, suffixes
from reparam.errors import InputError, ReparamError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from reparam.deploy.engines import Format

FORMS = ("train", "fused")
_PREFIX = "reparam."
KEY_OF_CERTIFICATE = f"{_PREFIX}certificate"


def describe_model(
    model: nn.Module,
    entry: Format,
    *,
    form: str,
    source: str,
    inputs: Sequence[torch.Tensor],
    notes: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the metadata of a file: keys with a common prefix, values that are text."""
    packages = ("torch", *entry.packages)
    versions = {name: importlib.metadata.version(name) for name in packages}
    content = {
        **(notes or {}),
        "version": __version__,
        "form": form,
        "source": source,
        "inputs": json.dumps([[str(x.dtype).removeprefix("torch."), *x.shape] for x in inputs]),
        "parameters": str(sum(p.numel() for p in model.parameters())),
        "written_with": json.dumps(versions, sort_keys=True),
    }
    if entry.layout:
        content["layout"] = entry.layout
    if entry.precision != "fp32":
        content["precision"] = entry.precision
    return {_PREFIX + key: value for key, value in content.items()}


@takes(path=PATH)
def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a file written by :func:`reparam.export` says about itself.

    Returns:
        ``version`` of this package, ``form`` (``"train"`` or ``"fused"``), ``source`` (what the
        model was made from), ``inputs`` (type and sizes of each that it was checked on),
        ``parameters`` (their number), ``written_with`` (versions by package), ``pruned`` (channels
        in and out by layer, if channels are gone), ``layout`` (of images, where the format knows
        two), ``precision`` (if it is not float32), ``certificate`` (what was proven of it, see
        :func:`reparam.deploy.exporting.check_certificate`), and notes of whoever wrote. Empty if
        the file says nothing.

    Raises:
        InputError: The file does not exist, or is of a format that holds no metadata.
        MissingExtraError: The package that reads the format is not installed.
    """
    file = Path(path)
    if not is_there(file):
        raise InputError(f"there is no file {file.name!r} in {file.parent}")
    entries = [entry for entry in formats() if entry.suffix == file.suffix.lower()]
    if not entries:
        raise InputError(
            f"{file.name!r} holds no metadata that can be read; formats that do: "
            f"{', '.join(suffixes())}"
        )
    try:
        return _content(file, entries)
    except ReparamError:
        raise
    except Exception as error:  # of whatever library reads such files
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file.name!r} cannot be read as {file.suffix}: {why}") from error


def _content(file: Path, entries: Sequence[Format]) -> dict[str, Any]:
    readers = dict.fromkeys(entry.read_metadata or _read_sidecar for entry in entries)
    found = {key: value for read in readers for key, value in read(file).items()}
    content: dict[str, Any] = {
        key.removeprefix(_PREFIX): value for key, value in found.items() if key.startswith(_PREFIX)
    }
    for key in ("written_with", "inputs", "pruned", "certificate"):
        if key in content:
            content[key] = json.loads(content[key])
    if "parameters" in content:
        content["parameters"] = int(content["parameters"])
    return content


def write_sidecar(file: Path, metadata: Mapping[str, str]) -> None:
    """Write metadata beside a file of a format that holds none."""
    _sidecar(file).write_text(json.dumps(dict(metadata), indent=1) + "\n", encoding="utf-8")


def add_to_sidecar(file: Path, more: Mapping[str, str]) -> None:
    """Add to the metadata beside a file."""
    content = _read_sidecar(file) | dict(more)
    write_text(_sidecar(file), json.dumps(content, indent=1) + "\n")


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _read_sidecar(file: Path) -> dict[str, str]:
    beside = _sidecar(file)
    if not beside.is_file():
        return {}
    content: dict[str, str] = json.loads(beside.read_text(encoding="utf-8"))
    return content
