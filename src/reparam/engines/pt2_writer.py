"""Write a module as an exported program (``.pt2``)."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import torch

from reparam.engines.program import Dynamic, export_program, quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

__all__ = ["METADATA_FILE", "write_pt2"]

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
    # To memory first: where the disk is full, PyTorch's own file writer ends the whole process.
    content = io.BytesIO()
    with quiet():
        torch.export.save(
            program.exported, content, extra_files={METADATA_FILE: json.dumps(dict(metadata or {}))}
        )
    path.write_bytes(content.getbuffer())
    return program.axes
