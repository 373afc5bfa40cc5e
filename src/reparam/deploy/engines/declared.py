"""What exported files say about their input."""

from __future__ import annotations

from pathlib import Path

from reparam.deploy.engines.base import engine_names, get_engine

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
    for name in engine_names():
        engine = get_engine(name)
        sizes = engine.input_sizes(path) if path.suffix.lower() in engine.suffixes else None
        if sizes is not None:
            return sizes[0] if len(sizes) == 1 else None
    return None
