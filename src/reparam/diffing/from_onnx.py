"""Read an ONNX graph: carry its operators out in torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from reparam.diffing.recording import Recorder, record
from reparam.diffing.running import furthest_apart
from reparam.diffing.tape import Tape, wide
from reparam.errors import UnsupportedModelError
from reparam.frontends.onnx.in_torch_layouts import IN_TORCH
from reparam.frontends.onnx.inputs import required_inputs
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.run import evaluated
from reparam.frontends.onnx.tensors import FLOATS, to_torch

if TYPE_CHECKING:
    import onnx

Values = Callable[["onnx.ModelProto", Sequence[Tensor]], list[Tensor]]
"""What a runtime makes of a graph and inputs."""


def read_onnx(model: onnx.ModelProto, inputs: Sequence[Tensor]) -> Tape:
    """Return what a graph does with inputs like these; see ``recording``."""
    graph, free = model.graph, required_inputs(model)
    types = [FLOATS.get(entry.type.tensor_type.elem_type) for entry in free]
    like = [x if kind is None else x.to(kind) for x, kind in zip(inputs, types, strict=True)]

    stored: dict[str, Any] = {tensor.name: to_torch(tensor) for tensor in graph.initializer}

    def run(recorder: Recorder, inputs: list[Tensor]) -> list[Tensor]:
        known = dict(stored)
        known |= dict(zip((entry.name for entry in free), inputs, strict=True))
        for node in graph.node:
            given = [known[name] if name else None for name in node.input]
            recorder.path[:] = [node.name or node.output[0]]
            made = (
                _carried_out(node, given)
                if recorder.depends(given)
                else _computed(recorder, node, given, model)
            )
            known |= zip(node.output, made, strict=False)
        return [known[entry.name] for entry in graph.output]

    return record(run, like)


def _carried_out(node: onnx.NodeProto, given: list[Any]) -> Sequence[Any]:
    """What torch makes of an operation."""
    where = node.name or node.output[0]
    function = IN_TORCH.get(node.op_type)
    if function is None or node.domain not in _DOMAINS:
        raise UnsupportedModelError(f"{node.op_type} at {where} has no normal form")
    try:
        result = function(*given, **attributes(node))
    except Exception as error:
        raise UnsupportedModelError(
            f"{node.op_type} at {where} has no normal form as it is used there: {error}"
        ) from error
    return result if isinstance(result, (list, tuple)) else [result]


_DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Those of ONNX itself, and of what its optimisers write."""


def _computed(
    recorder: Recorder, node: onnx.NodeProto, given: list[Any], model: onnx.ModelProto
) -> Sequence[Tensor]:
    """Compute what depends on no input, as the graph does and without rounding."""
    made = _constants(node, given, model)
    rounds = any(isinstance(x, Tensor) and x.is_floating_point() for x in given)
    if rounds and node.op_type != "Cast":  # a cast is there to round
        with _disable_current_modes(), suppress(UnsupportedModelError):
            exact = [wide(recorder.seen(x)) if isinstance(x, Tensor) else x for x in given]
            recorder.note_exact(made, _constants(node, exact, model))
    return made


def _constants(node: onnx.NodeProto, given: list[Any], model: onnx.ModelProto) -> Sequence[Tensor]:
    """Compute what depends on no input by the reference evaluator."""
    named = zip(node.input, given, strict=True)
    feeds = {name: torch.as_tensor(value) for name, value in named if name}
    opsets = {each.domain: each.version for each in model.opset_import}
    try:
        with _disable_current_modes():  # copied, as some return what they are given
            found = evaluated([node], feeds, [name for name in node.output if name], opsets)
            return [value.clone() for value in found]
    except Exception as error:
        raise UnsupportedModelError(
            f"the constants of {node.op_type} at {node.output[0]} cannot be computed: {error}"
        ) from error


def furthest_step(model: onnx.ModelProto, inputs: Sequence[Tensor], values: Values) -> float:
    """How far one operation of torch is from a runtime's on what the runtime gives it, at most."""
    told = copy.deepcopy(model)
    names = [name for node in model.graph.node for name in node.output if name]
    del told.graph.output[:]
    told.graph.output.extend(type(model.graph.output[0])(name=name) for name in names)
    known: dict[str, Any] = {tensor.name: to_torch(tensor) for tensor in model.graph.initializer}
    free = required_inputs(model)
    known |= {
        entry.name: x.to(FLOATS.get(entry.type.tensor_type.elem_type, x.dtype))
        for entry, x in zip(free, inputs, strict=True)
    }
    known |= zip(names, values(told, inputs), strict=True)
    varying = {entry.name for entry in free}
    furthest = 0.0
    for node in model.graph.node:
        if not varying.intersection(node.input):
            continue
        varying.update(name for name in node.output if name)
        given = [known[name] if name else None for name in node.input]
        for name, made in zip(node.output, _carried_out(node, given), strict=False):
            if name and isinstance(made, Tensor):
                furthest = max(furthest, furthest_apart([made], [known[name]]))
    return furthest
