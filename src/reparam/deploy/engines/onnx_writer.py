"""Write a module as an ONNX file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam._support import optional
from reparam.deploy.engines.program import quiet
from reparam.errors import ExportError, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion

__all__ = ["onnx_metadata", "write_onnx"]

_PURPOSE = "exporting to ONNX"
_LIMIT = 2**31
"""A protocol buffer holds at most this many bytes."""


def write_onnx(conversion: Conversion, path: Path) -> Axes:
    """Write a model to one ``.onnx`` file and check it against the ONNX specification.

    The metadata become the file's ``metadata_props``.

    Returns:
        The variable dimensions of each input, by position.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ExportError: The model cannot be written as ONNX.
    """
    onnx = optional.require("onnx", extra="deploy", purpose=_PURPOSE)
    optional.require("onnxscript", extra="deploy", purpose=_PURPOSE)
    size = sum(p.numel() * p.element_size() for p in conversion.model.parameters())
    if size >= _LIMIT:
        raise ExportError(
            f"the model has {size / 1e9:.1f} GB of parameters, and one ONNX file holds 2.1 GB; "
            "export to .pt2 or .xml instead"
        )
    import torch

    program = conversion.program()
    try:
        with quiet(), torch.no_grad():
            written = torch.onnx.export(
                program.exported,
                input_names=_names("input", len(program.inputs)),
                output_names=_names("output", len(program.exported.graph_signature.user_outputs)),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch.onnx could not convert {conversion.name}: {str(error).strip()}"
        ) from error
    if written is None:
        raise ExportError("torch.onnx.export ended without an error and without a model")
    proto = written.model_proto
    onnx.helper.set_model_props(proto, dict(conversion.metadata))
    path.write_bytes(proto.SerializeToString())
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"the ONNX file does not pass onnx.checker: {error}") from error
    return program.axes


def onnx_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a file holds."""
    onnx = optional.require("onnx", extra="deploy", purpose="reading ONNX")
    model = onnx.load(str(path), load_external_data=False)
    if not model.HasField("graph"):
        raise InputError(f"{path.name!r} is no ONNX file: it holds no graph")
    return {entry.key: entry.value for entry in model.metadata_props}


def _names(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]
