"""Open either side of a comparison: a module, an exported program, or a file of one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam._arguments import check_module, in_training
from reparam._optional import require
from reparam.diffing.from_exported import read_exported
from reparam.diffing.from_onnx import read_onnx
from reparam.diffing.values import Form
from reparam.errors import InputError, TrainingModeError, UnsupportedModelError

if TYPE_CHECKING:
    import onnx

    Network = nn.Module | ExportedProgram | onnx.ModelProto | str | os.PathLike[str]
else:
    Network = Any

__all__ = ["Network", "Side", "open_side"]

_FREE = 2, 64
"""Batch and size that are tried where an ONNX file leaves them open."""


@dataclass(frozen=True, eq=False)
class Side:
    """One network, opened but not yet read.

    Attributes:
        shapes: Shapes of its inputs, where it fixes or suggests them.
        unit: Unit of rounding of the coarsest type that its weights are stored in.
        read: Its outputs in normal form, for inputs like these.
        run: Its outputs as its own runtime computes them.

    """

    shapes: tuple[tuple[int, ...], ...] | None
    unit: float
    read: Callable[[Sequence[Tensor]], list[Form]]
    run: Callable[[Sequence[Tensor]], list[Tensor]]


def open_side(network: Network, name: str) -> Side:
    """Open one side.

    Raises:
        InputError: It is nothing that can be compared, or cannot be opened.
        TrainingModeError: It is a module in training mode.

    """
    if isinstance(network, (str, os.PathLike)):
        path = Path(network)
        if not path.is_file():
            raise InputError(f"{name} is {str(path)!r}, no file; needed an .onnx or .pt2 file")
        if path.suffix == ".onnx":
            onnx = require("onnx", extra="deploy", purpose="reading ONNX files")
            return _open_onnx(onnx.load(path))
        if path.suffix == ".pt2":
            return _open_program(torch.export.load(path))
        raise InputError(f"{name} is {path}, of no kind that diff reads; needed .onnx or .pt2")
    if isinstance(network, ExportedProgram):
        return _open_program(network)
    if isinstance(network, nn.Module):
        return _open_module(network, name)
    if hasattr(network, "graph") and hasattr(network, "opset_import"):
        return _open_onnx(network)
    raise InputError(
        f"{name} is a {type(network).__name__}; needed a module, an ExportedProgram, an "
        f"onnx.ModelProto, or the path of an .onnx or .pt2 file"
    )


def _open_module(module: nn.Module, name: str) -> Side:
    check_module(name, module)
    where = in_training(module)
    if where is not None:
        raise TrainingModeError(
            f"{where!r} of {name} is in training mode, where it depends on the batch; call "
            f"{name}.eval() first"
        )

    def exported(inputs: Sequence[Tensor]) -> list[Form]:
        try:
            program = torch.export.export(module, tuple(inputs), strict=False)
        except Exception as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            msg = f"{name} cannot be exported by torch.export: {text[0]}"
            raise UnsupportedModelError(msg) from error
        return read_exported(program)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return _tensors(module(*inputs))

    return Side(None, _unit(module.state_dict().values()), exported, run)


def _open_program(program: ExportedProgram) -> Side:
    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return _tensors(program.module()(*inputs))

    users = set(program.graph_signature.user_inputs)
    shapes = tuple(
        tuple(n if isinstance(n, int) else _FREE[0] for n in node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in users
    )
    return Side(shapes, _unit(program.state_dict.values()), lambda _: read_exported(program), run)


def _open_onnx(model: onnx.ModelProto) -> Side:
    runtime = require("onnxruntime", extra="deploy", purpose="comparing ONNX files")
    helper = require("onnx.numpy_helper", extra="deploy", purpose="comparing ONNX files")
    stored = {entry.name for entry in model.graph.initializer}
    free = [entry for entry in model.graph.input if entry.name not in stored]
    shapes = tuple(_declared(entry) for entry in free)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {entry.name: x.numpy() for entry, x in zip(free, inputs, strict=True)}
        return [torch.as_tensor(value) for value in session.run(None, feeds)]

    weights = [torch.from_numpy(helper.to_array(e).copy()) for e in model.graph.initializer]
    return Side(
        shapes, _unit(weights), lambda inputs: read_onnx(model, [x.shape for x in inputs]), run
    )


def _declared(entry: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = entry.type.tensor_type.shape.dim
    known = [dim.dim_value if dim.dim_value > 0 else None for dim in dims]
    return tuple(
        size or (_FREE[0] if position == 0 else _FREE[1]) for position, size in enumerate(known)
    )


def _unit(stored: Any) -> float:
    floats = [x.dtype for x in stored if isinstance(x, Tensor) and x.is_floating_point()]
    return (
        max((torch.finfo(kind).eps for kind in floats), default=torch.finfo(torch.float32).eps) / 2
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in _tensors(each)]
    return []
