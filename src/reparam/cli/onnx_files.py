"""ONNX files as MODEL: told from names, and the shapes on which they are compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import reparam
from reparam._optional import require
from reparam.errors import InputError
from reparam.fusing.onnx_compare import compare_onnx_files
from reparam.fusing.onnx_file import read_onnx_file

if TYPE_CHECKING:
    from onnx import ModelProto

    from reparam.cli.targets import Inputs

__all__ = ["input_shapes", "is_onnx", "read", "verify_files"]


def is_onnx(name: str) -> bool:
    """Whether a MODEL is an ONNX file.

    >>> is_onnx("net.onnx"), is_onnx("timm:resnet18")
    (True, False)
    """
    return Path(name).suffix.lower() == ".onnx"


def read(name: str) -> ModelProto:
    """Read a file, having asked for the package that reads it.

    Raises:
        InputError: it is missing, or no whole ONNX model.
        MissingExtraError: onnx is not installed.
    """
    require("onnx", extra="deploy", purpose="Reading ONNX files")
    return read_onnx_file(name)


def input_shapes(name: str, model: ModelProto, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """What --shape and --input-size say about the inputs of a file; empty if nothing.

    Raises:
        InputError: --shape is given and the file has several inputs.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    declared = [value for value in model.graph.input if value.name not in stored]
    if inputs.shape is not None:
        if len(declared) != 1:
            raise InputError(
                f"{name} has {len(declared)} inputs, and --shape is for one; leave it out"
            )
        return {declared[0].name: inputs.shape}
    if inputs.size is None:
        return {}
    sizes = {value.name: value.type.tensor_type.shape.dim for value in declared}
    return {
        key: tuple(dim.dim_value or (inputs.size if axis else 1) for axis, dim in enumerate(dims))
        for key, dims in sizes.items()
    }


def verify_files(reference: str, candidate: str, inputs: Inputs) -> reparam.Verdict:
    """Compare two ONNX files in ONNX Runtime.

    Raises:
        InputError: one of them is missing, no ONNX file, or does not run.
    """
    if not is_onnx(candidate):
        raise InputError(
            f"{reference} is an ONNX file, and so must {candidate} be; or give the MODEL first "
            f"and the file second, as in reparam verify MODEL {reference}"
        )
    model = read(reference)
    read(candidate)
    shapes = input_shapes(reference, model, inputs)
    return compare_onnx_files(Path(reference), Path(candidate), model, shapes)
