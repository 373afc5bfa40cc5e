"""Open either side of a comparison: a module, an exported program, or a file of one of them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam._support.arguments import check_module, in_training
from reparam._support.optional import require
from reparam._support.untouched import untouched
from reparam.diffing.from_exported import kinds_in, read_exported
from reparam.diffing.from_module import read_module, tensors
from reparam.diffing.from_onnx import furthest_step, read_onnx
from reparam.diffing.tape import Tape
from reparam.errors import InputError, TrainingModeError, UnsupportedModelError
from reparam.frontends.onnx.inputs import declared_sizes, required_inputs
from reparam.frontends.onnx.tensors import to_torch

if TYPE_CHECKING:
    import onnx

    Network = nn.Module | ExportedProgram | onnx.ModelProto | str | os.PathLike[str]
else:
    Network = Any


@dataclass(frozen=True, eq=False)
class Side:
    """One network, opened but not yet read.

    Attributes:
        name: What messages call it.
        shapes: Shapes of its inputs, where it says them; None for sizes that it leaves open.
        unit: Unit of rounding of the coarsest type that its weights are stored in.
        read: What it does with inputs like these.
        run: Its outputs as its own runtime computes them.
        kind: What an operation of this name in it is.
        steps: How far its runtime is from what was read, as a share of the largest number, at the
            operation where that is most; None where both run the same code as a whole.

    """

    name: str
    shapes: tuple[tuple[int | None, ...], ...] | None
    unit: float
    read: Callable[[Sequence[Tensor]], Tape]
    run: Callable[[Sequence[Tensor]], list[Tensor]]
    kind: Callable[[str], str]
    steps: Callable[[Sequence[Tensor]], float] | None = None

    def outputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What it computes.

        Raises:
            InputError: It does not run on such inputs.
            UnsupportedModelError: It returns no tensor, or more than tensors.

        """
        try:
            found = self.run(inputs)
        except UnsupportedModelError:
            raise
        except Exception as error:
            shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{self.name} does not run on inputs of shape {shapes} (example_inputs), which "
                f"both networks are compared for: {text}"
            ) from error
        if not found:
            raise UnsupportedModelError(f"{self.name} returns no tensor that can be compared")
        return found


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
            return _open_onnx(_loaded(onnx.load, path, name), name)
        if path.suffix == ".pt2":
            if not zipfile.is_zipfile(path):  # of which torch would log a traceback
                raise InputError(f"{name}, {path}, is no exported program, or it is cut short")
            return _open_program(_loaded(torch.export.load, path, name), name)
        raise InputError(f"{name} is {path}, of no kind that diff reads; needed .onnx or .pt2")
    if isinstance(network, ExportedProgram):
        return _open_program(network, name)
    if isinstance(network, nn.Module):
        return _open_module(network, name)
    if hasattr(network, "graph") and hasattr(network, "opset_import"):
        return _open_onnx(network, name)
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

    stored = [*module.parameters(), *module.buffers()]

    def read(inputs: Sequence[Tensor]) -> Tape:
        inputs = _as_stored(inputs, stored)
        try:
            return read_module(module, inputs)
        except Exception:  # noqa: BLE001 (the module's own code, under a mode that watches it)
            return exported(inputs)

    def exported(inputs: Sequence[Tensor]) -> Tape:
        try:
            program = torch.export.export(module, tuple(inputs), strict=False)
        except Exception as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise UnsupportedModelError(
                f"{name} cannot be exported by torch.export: {text[0]}"
            ) from error
        return read_exported(program, inputs)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return tensors(module(*_as_stored(inputs, stored)))

    kinds = {path: type(part).__name__ for path, part in module.named_modules()}
    return Side(name, None, _unit(stored), read, run, lambda path: kinds.get(path, ""))


def _loaded(load: Callable[[Path], Any], path: Path, name: str) -> Any:
    try:
        return load(path)
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name}, {path}, cannot be read: {why}; needed a whole {path.suffix} file"
        ) from error


def _as_stored(inputs: Sequence[Tensor], stored: Sequence[Tensor]) -> list[Tensor]:
    """Inputs in the type that weights are stored in, where there is one."""
    kinds = {x.dtype for x in stored if x.is_floating_point()}
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    return [x.to(kind) if kind is not None and x.is_floating_point() else x for x in inputs]


def _open_program(program: ExportedProgram, name: str) -> Side:
    stored = list(program.state_dict.values())

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        module = program.module()
        with torch.no_grad(), untouched([module]):
            return tensors(module(*_as_stored(inputs, stored)))

    users = set(program.graph_signature.user_inputs)
    shapes = tuple(
        tuple(n if isinstance(n, int) else None for n in node.meta["val"].shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in users
    )

    def read(inputs: Sequence[Tensor]) -> Tape:
        return read_exported(program, _as_stored(inputs, stored))

    return Side(name, shapes, _unit(stored), read, run, kinds_in(program))


def _open_onnx(model: onnx.ModelProto, name: str) -> Side:
    runtime = require("onnxruntime", extra="deploy", purpose="comparing ONNX files")
    types = require("onnx.helper", extra="deploy", purpose="comparing ONNX files")
    if model.functions:
        inliner = require("onnx.inliner", extra="deploy", purpose="comparing ONNX files")
        model = inliner.inline_local_functions(model)
    free = required_inputs(model)
    shapes = tuple(
        tuple(n if isinstance(n, int) else None for n in declared_sizes(entry) or ())
        for entry in free
    )

    def values(of: onnx.ModelProto, inputs: Sequence[Tensor]) -> list[Tensor]:
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = runtime.InferenceSession(
            of.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {
            entry.name: x.numpy().astype(
                types.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
            )
            for entry, x in zip(free, inputs, strict=True)
        }
        return [torch.as_tensor(value) for value in session.run(None, feeds)]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        return values(model, inputs)

    def steps(inputs: Sequence[Tensor]) -> float:
        return furthest_step(model, inputs, values)

    kinds = {node.name or node.output[0]: node.op_type for node in model.graph.node}
    return Side(
        name,
        shapes,
        _unit(map(to_torch, model.graph.initializer)),
        lambda inputs: read_onnx(model, inputs),
        run,
        lambda node: kinds.get(node, ""),
        steps,
    )


def _unit(stored: Any) -> float:
    floats = [x.dtype for x in stored if isinstance(x, Tensor) and x.is_floating_point()]
    return (
        max((torch.finfo(kind).eps for kind in floats), default=torch.finfo(torch.float32).eps) / 2
    )
