"""Convert a module to an OpenVINO model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reparam._support import optional
from reparam.deploy.engines.program import quiet
from reparam.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion, Program

__all__ = ["RT_INFO", "openvino_metadata", "to_openvino", "write_openvino"]

_PURPOSE = "exporting to OpenVINO"
RT_INFO = "reparam"
"""Section of the graph's run-time information that holds the metadata."""


def to_openvino(conversion: Conversion) -> tuple[Any, Axes]:
    """Convert a model in memory; return the OpenVINO model and the variable dimensions.

    Raises:
        MissingExtraError: openvino is not installed.
        ExportError: The model cannot be converted.
    """
    openvino = optional.require("openvino", extra="deploy", purpose=_PURPOSE)
    program = conversion.program()
    try:
        with quiet():
            converted = openvino.convert_model(program.exported)
            _fix_shapes(openvino, converted, conversion, program)
    except Exception as error:
        raise ExportError(
            f"OpenVINO could not convert {conversion.name}: {str(error).strip()}"
        ) from error
    return converted, program.axes


def _fix_shapes(openvino: Any, model: Any, conversion: Conversion, program: Program) -> None:
    """Give a model the shapes that it was exported for: the converter lets most sizes vary."""
    shapes = {
        port: openvino.PartialShape([-1 if d in free else size for d, size in enumerate(x.shape)])
        for port, x, free in zip(model.inputs, conversion.inputs, program.axes, strict=True)
    }
    model.reshape(shapes)


def write_openvino(conversion: Conversion, path: Path) -> Axes:
    """Write a model as ``path`` (the graph) and a ``.bin`` file beside it (the weights, float32).

    Returns:
        The variable dimensions of each input, by position.

    Raises:
        MissingExtraError: openvino is not installed.
        ExportError: The model cannot be converted.
        RuntimeError: OpenVINO could not write the file.
    """
    openvino = optional.require("openvino", extra="deploy", purpose=_PURPOSE)
    converted, axes = to_openvino(conversion)
    for key, value in conversion.metadata.items():
        converted.set_rt_info(value, [RT_INFO, key])
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    return axes


def openvino_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a file holds."""
    openvino = optional.require("openvino", extra="deploy", purpose="reading OpenVINO IR")
    model = openvino.Core().read_model(str(path))
    if not model.has_rt_info([RT_INFO]):
        return {}
    return {key: str(value) for key, value in model.get_rt_info([RT_INFO]).value.items()}
