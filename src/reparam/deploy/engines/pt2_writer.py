"""Write a module as an exported program (``.pt2``)."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import torch

from reparam._support.files import write_bytes
from reparam.deploy.engines.program import Dynamic, export_program, quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["METADATA_FILE", "save_program", "write_pt2"]

METADATA_FILE = "reparam.json"
"""Name of the metadata inside the archive."""


def write_pt2(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    path: Path,
    *,
    dynamic: Dynamic = Dynamic.AUTO,
    metadata: Mapping[str, str] | None = None,
) -> tuple[dict[int, str], ...]:
    """Write ``model`` with :func:`torch.export.save`.

    Returns:
        The variable dimensions of each input, by position.

    Raises:
        ExportError: The model cannot be traced.
    """
    program = export_program(model, inputs, dynamic)
    path.write_bytes(_saved(program.exported, metadata))
    return program.axes


def save_program(program: ExportedProgram, path: Path) -> int:
    """Write a program whole, or not at all; return its number of bytes."""
    content = _saved(program, None)
    write_bytes(path, content)
    return len(content)


def _saved(program: ExportedProgram, metadata: Mapping[str, str] | None) -> bytes:
    """The content of a file; where the disk is full, PyTorch's own writer ends the process."""
    content = io.BytesIO()
    with quiet():
        torch.export.save(
            program, content, extra_files={METADATA_FILE: json.dumps(dict(metadata or {}))}
        )
    return content.getvalue()
