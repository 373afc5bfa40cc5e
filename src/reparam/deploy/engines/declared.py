"""What exported files say about their input."""

from __future__ import annotations

from pathlib import Path

from reparam._support import optional
from reparam.deploy.engines.base import Settings, get_engine
from reparam.deploy.engines.pytorch import is_package, load_program
from reparam.errors import ExportError

__all__ = ["declared_sizes_of"]


def declared_sizes_of(path: Path) -> list[int | None] | None:
    """Return the sizes of a file's only input, ``None`` for one that varies.

    Args:
        path: A file of torch.export (``.pt2``), OpenVINO (``.xml``), LiteRT (``.tflite``, the
            channels first, whichever way it takes them) or another format.

    Returns:
        The sizes; ``None`` for a file of another format, which does not say them, and for one with
        several inputs.

    Raises:
        ExportError: The file cannot be read.
        MissingExtraError: What reads it is not installed.
    """
    readers = {".pt2": _of_program, ".xml": _of_openvino, ".tflite": _of_litert}
    reader = readers.get(path.suffix.lower())
    if reader is None or is_package(path):
        return None
    sizes = reader(path)
    return sizes[0] if len(sizes) == 1 else None


def _of_program(path: Path) -> list[list[int | None]]:
    program = load_program(path)
    wanted = program.graph_signature.user_inputs
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    ]
    return [[size if type(size) is int else None for size in shape] for shape in shapes]


def _of_openvino(path: Path) -> list[list[int | None]]:
    openvino = optional.require("openvino", extra="deploy", purpose=f"reading {path.name}")
    try:
        model = openvino.Core().read_model(str(path))
    except RuntimeError as error:
        raise ExportError(f"OpenVINO could not read {path.name}: {error}") from error
    shapes = [value.partial_shape for value in model.inputs]
    return [[size.get_length() if size.is_static else None for size in shape] for shape in shapes]


def _of_litert(path: Path) -> list[list[int | None]]:
    return [
        [size if size > 0 else None for size in shape]
        for shape in get_engine("litert").load(path, Settings()).declared()  # type: ignore[attr-defined]
    ]
