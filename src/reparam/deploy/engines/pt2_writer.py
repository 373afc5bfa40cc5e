"""Write a module as an exported program (``.pt2``)."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING

import torch

from reparam._support.files import write_bytes
from reparam.deploy.engines.program import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.export import ExportedProgram

    from reparam.deploy.engines.program import Axes, Conversion

__all__ = ["METADATA_FILE", "pt2_metadata", "save_program", "write_pt2"]

METADATA_FILE = "reparam.json"
"""Name of the metadata inside the archive."""


def write_pt2(conversion: Conversion, path: Path) -> Axes:
    """Write a model with :func:`torch.export.save`.

    Returns:
        The variable dimensions of each input, by position.

    Raises:
        ExportError: The model cannot be traced.
    """
    program = conversion.program()
    path.write_bytes(_saved(program.exported, conversion.metadata))
    return program.axes


def pt2_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a program holds."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(METADATA_FILE):
                content: dict[str, str] = json.loads(archive.read(name))
                return content
    return {}


def save_program(program: ExportedProgram, path: Path) -> int:
    """Write a program whole, or not at all; return its number of bytes."""
    content = _saved(program, {})
    write_bytes(path, content)
    return len(content)


def _saved(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """The content of a file; where the disk is full, PyTorch's own writer ends the process."""
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    return content.getvalue()
