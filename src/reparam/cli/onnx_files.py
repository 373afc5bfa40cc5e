"""ONNX files on the command line: read, fed with random inputs, compared, written."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import reparam
from reparam import _files
from reparam._optional import require
from reparam.cli.targets import Inputs
from reparam.engines import Settings, get_engine
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import ModelProto

__all__ = ["compare", "counts", "is_onnx", "random_inputs", "read", "runner", "save"]

_FACTOR = 8.0
"""How many times the file's own rounding error a candidate may be away, as for torch modules."""

_SIDE = 224
_MOST_BYTES = 2**31 - 1
"""A protobuf message holds no more; larger weights go into a file beside it."""


def is_onnx(name: str) -> bool:
    """Whether a MODEL is an ONNX file."""
    return Path(name).suffix.lower() == ".onnx"


def read(name: str) -> ModelProto:
    """Read an ONNX file with all its weights.

    Raises:
        InputError: there is no such file, or it is not ONNX.
        MissingExtraError: onnx is not installed.
    """
    onnx = require("onnx", extra="deploy", purpose="Reading ONNX files")
    if not Path(name).is_file():
        raise InputError(f"there is no file {name}; give an ONNX file or a MODEL")
    try:
        model: ModelProto = onnx.load(name)
    except Exception as error:
        raise InputError(f"{name} cannot be read as ONNX: {error}") from error
    if not model.graph.node:
        raise InputError(f"{name} holds no ONNX graph; is it another kind of file?")
    return model


def random_inputs(name: str, model: ModelProto, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Random values for every input of the graph; sizes that the file leaves open are chosen.

    An open first size is 1; other open sizes of images are `inputs.size` or 224.

    Raises:
        InputError: a size is open and nothing says what it should be, or a type has no random
            values.
    """
    onnx = require("onnx", extra="deploy", purpose="Reading ONNX files")
    stored = {tensor.name for tensor in model.graph.initializer}
    declared = [value for value in model.graph.input if value.name not in stored]
    if inputs.shape is not None and len(declared) != 1:
        raise InputError(f"{name} has {len(declared)} inputs, and --shape is for one; leave it out")
    generator = torch.Generator().manual_seed(0)
    made = []
    for value in declared:
        kind = value.type.tensor_type
        dtype = torch.from_numpy(
            require("numpy", extra="deploy", purpose="ONNX files").zeros(
                1, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            )
        ).dtype
        if not dtype.is_floating_point:
            raise InputError(f"the input {value.name!r} of {name} is {dtype}; needed real numbers")
        shape = inputs.shape or _shape(name, value.name, kind.shape.dim, inputs.size)
        made.append(torch.randn(shape, generator=generator).to(dtype))
    return tuple(made)


def _shape(name: str, value: str, dims: Any, side: int | None) -> tuple[int, ...]:
    shape = []
    for position, dim in enumerate(dims):
        is_image_side = len(dims) == 4 and position >= 2
        if dim.HasField("dim_value") and dim.dim_value > 0:
            shape.append(int(dim.dim_value))
        elif position == 0:
            shape.append(1)
        elif is_image_side:
            shape.append(side or _SIDE)
        else:
            raise InputError(
                f"{name} leaves size {position} of its input {value!r} open; give the whole shape "
                "with --shape N,C,H,W"
            )
    return tuple(shape)


def runner(path: Path) -> Callable[..., list[torch.Tensor]]:
    """The file in ONNX Runtime, as a function of its inputs.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ExportError: it does not take the file.
    """
    engine = get_engine("onnxruntime")
    engine.require()
    loaded = engine.load(path, Settings())
    return lambda *inputs: loaded.run(inputs)


def compare(
    reference: Path, model: ModelProto, candidate: Callable[..., Any], inputs: Any
) -> reparam.Verdict:
    """Run the file `reference`, which holds `model`, and the candidate on the same inputs.

    What rounding explains is measured: the file is run once more with every weight changed by up
    to one unit in its last place, which moves the output about as far as rounding every product
    does. A candidate may be 8 times as far away.

    Raises:
        InputError: the file does not run on the inputs, or the two return other shapes.
    """
    run = runner(reference)
    try:
        run(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
        raise InputError(
            f"{reference} does not run on inputs of shape {shapes}: {error}; give the shape that "
            "it takes with --shape N,C,H,W or --input-size PIXELS"
        ) from error
    with tempfile.TemporaryDirectory(prefix="reparam-", ignore_cleanup_errors=True) as folder:
        shaken = Path(folder) / "shaken.onnx"
        _write(_shaken(model), shaken)
        control = reparam.verify(run, runner(shaken), inputs, tolerance=0.0).max_abs  # type: ignore[arg-type]
    verdict = reparam.verify(run, candidate, inputs, tolerance=_FACTOR * control)  # type: ignore[arg-type]
    return replace(verdict, control=control)


def _shaken(model: ModelProto) -> ModelProto:
    """A copy with every real weight changed by up to one unit in its last place."""
    onnx = require("onnx", extra="deploy", purpose="Comparing ONNX files")
    twin: ModelProto = type(model)()
    twin.CopyFrom(model)
    generator = torch.Generator().manual_seed(0)
    for tensor in twin.graph.initializer:
        value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        if value.is_floating_point():
            noise = 2 * torch.rand(value.shape, generator=generator, dtype=torch.float64) - 1
            moved = value.double() * (1 + torch.finfo(value.dtype).eps * noise)
            array = moved.to(value.dtype).numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return twin


def save(model: ModelProto, path: Path, check: Callable[[Path], reparam.Verdict]) -> Any:
    """Write a model whole or not at all, once `check` of the written file finds it equal.

    Raises:
        VerificationError: it differs; nothing is written.
        InputError: the path cannot be written.
    """
    with _files.atomic_path(path) as temporary:
        _write(model, temporary)
        verdict = check(temporary)
        verdict.raise_if_different()
    return verdict


def _write(model: ModelProto, path: Path) -> None:
    onnx = require("onnx", extra="deploy", purpose="Writing ONNX files")
    if model.ByteSize() <= _MOST_BYTES:
        path.write_bytes(model.SerializeToString())
        return
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")


def counts(model: ModelProto) -> dict[str, int]:
    """Operations and stored numbers of a graph."""
    kinds = Counter(node.op_type for node in model.graph.node)
    sizes = (torch.Size(tensor.dims).numel() for tensor in model.graph.initializer)
    return {
        "operations": len(model.graph.node),
        "convolutions": kinds["Conv"],
        "batch_norms": kinds["BatchNormalization"],
        "stored_numbers": sum(sizes),
    }
