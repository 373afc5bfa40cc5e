"""What exported files say about their input."""

from __future__ import annotations

from pathlib import Path

import torch

from reparam import _optional
from reparam.errors import ExportError

__all__ = ["declared_sizes_of"]


def declared_sizes_of(path: Path) -> list[int | None] | None:
    """Return the sizes of a file's only input, ``None`` for one that varies.

    Args:
        path: A file of torch.export (``.pt2``) or OpenVINO (``.xml``).

    Returns:
        The sizes; ``None`` for a file of another format, which does not say them, and for one with
        several inputs.

    Raises:
        ExportError: The file cannot be read.
        MissingExtraError: OpenVINO is not installed.
    """
    readers = {".pt2": _of_program, ".xml": _of_openvino}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        return None
    try:
        sizes = reader(path)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise ExportError(f"{path.name} could not be read: {str(error).splitlines()[0]}") from error
    return sizes[0] if len(sizes) == 1 else None


def _of_program(path: Path) -> list[list[int | None]]:
    program = torch.export.load(path)
    wanted = program.graph_signature.user_inputs
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    ]
    return [[size if type(size) is int else None for size in shape] for shape in shapes]


def _of_openvino(path: Path) -> list[list[int | None]]:
    openvino = _optional.require("openvino", extra="deploy", purpose=f"reading {path.name}")
    shapes = [value.partial_shape for value in openvino.Core().read_model(str(path)).inputs]
    return [[size.get_length() if size.is_static else None for size in shape] for shape in shapes]
