"""Leave out of an ONNX model what its wanted outputs do not need; compute what is fixed once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam._support.arguments import shown
from reparam.errors import InexactError, InputError
from reparam.frontends.onnx.constants import Constants
from reparam.frontends.onnx.inputs import FIRST_SEPARATE_INITIALIZERS, declared_sizes
from reparam.frontends.onnx.nodes import outer_reads, sorted_model
from reparam.frontends.onnx.shapes import infer
from reparam.frontends.onnx.tensors import FLOATS, as_array, from_torch, onnx_module
from reparam.frontends.onnx.valid import check_readable
from reparam.fusing.asked import Fixed, Outputs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

_SHOWN = 6
"""Operations that a note names."""


def asked_onnx(model: ModelProto, outputs: Outputs | None, fixed: Fixed | None) -> ModelProto:
    """Copy a model with some of its outputs and of its inputs only; all operations are left.

    Args:
        model: It is only read.
        outputs: Names or positions of outputs, in the order that the new model has them.
        fixed: Values of inputs, by name, which become initializers.

    Raises:
        InputError: There is no such output or input, or it does not take such a value.

    """
    twin: ModelProto = type(model)()
    twin.CopyFrom(model)
    if outputs is not None:
        wanted = [outputs] if isinstance(outputs, int | str) else outputs
        kept = list({v.name: v for v in (_output(model.graph, name) for name in wanted)}.values())
        del twin.graph.output[:]
        twin.graph.output.extend(kept)
    for name, value in (fixed or {}).items():
        _fix(twin, name, value)
    if not any(v.name not in {t.name for t in twin.graph.initializer} for v in twin.graph.input):
        msg = "every input of the model is fixed; leave one that its outputs depend on"
        raise InputError(msg)
    return twin


def cut_onnx(model: ModelProto, fixed: Iterable[str]) -> tuple[ModelProto, list[str]]:
    """Leave out what no output needs, and store what follows from fixed inputs, in place.

    Args:
        model: What was asked for; it is changed.
        fixed: Names of inputs that are initializers now.

    Returns:
        What is left, and what is gone and what is stored, a sentence each.

    """
    opset, twin, notes = check_readable(model), sorted_model(model), []
    names = set(fixed)
    if names:
        stored = _store(twin, names, opset)
        follow = f", and {stored} tensors that follow from it are stored" if stored else ""
        notes.append(f"what is passed for {', '.join(sorted(names))} is fixed{follow}")
    removed = _drop_unread(twin.graph)
    if removed:
        more = [f"{len(removed) - _SHOWN} more"] if removed[_SHOWN:] else []
        notes.append(f"no output needs {', '.join((*removed[:_SHOWN], *more))}")
    return twin, notes


# ------------------------------------------------------------------------ what was asked for


def _output(graph: GraphProto, name: int | str) -> ValueInfoProto:
    values: dict[object, ValueInfoProto] = {value.name: value for value in graph.output}
    for position, value in enumerate(graph.output):
        for place in (position, position - len(graph.output)):
            values |= {place: value, str(place): values.get(str(place), value)}
    if name not in values:
        names = [value.name for value in graph.output]
        raise InputError(f"the model has no output {name!r}{_hint(name, names)}")
    return values[name]


def _hint(name: object, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), names, 1)
    return f"; near it: {near[0]}" if near else f"; it has {', '.join(names)}"


def _fix(model: ModelProto, name: str, value: Any) -> None:
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    if name not in inputs:
        stored = {tensor.name for tensor in graph.initializer}
        free = [n for n in inputs if n not in stored]
        raise InputError(f"the model has no input {name!r} to fix{_hint(name, free)}")
    tensor = _tensor(inputs[name], value)
    for known in [t for t in graph.initializer if t.name == name]:  # a default
        graph.initializer.remove(known)
    graph.initializer.append(tensor)
    if model.ir_version >= FIRST_SEPARATE_INITIALIZERS:
        graph.input.remove(inputs[name])


def _tensor(declared: ValueInfoProto, value: Any) -> TensorProto:
    """Write a value as an input takes it."""
    numpy, helper = onnx_module("numpy"), onnx_module("onnx.helper")
    name, kind = declared.name, declared.type.tensor_type.elem_type
    if not kind:
        raise InputError(f"the input {name!r} is no tensor; only tensors can be fixed")
    wanted = helper.tensor_dtype_to_np_dtype(kind)
    given = value.detach().cpu() if isinstance(value, Tensor) else value
    if isinstance(given, Tensor) and given.dtype == torch.bfloat16:
        given = given.float()  # numpy has no bfloat16 of its own
    array = numpy.asarray(given)
    plain = not hasattr(value, "dtype")  # a number of Python has no type of its own
    if not numpy.can_cast(array.dtype, wanted, "unsafe" if plain else "same_kind"):
        raise InputError(f"{name} is of type {array.dtype}; the input needs {wanted}")
    sizes = declared_sizes(declared)
    if sizes is not None and (
        len(sizes) != array.ndim
        or any(isinstance(n, int) and n != m for n, m in zip(sizes, array.shape, strict=True))
    ):
        needed = "x".join("?" if n is None else str(n) for n in sizes) or "no dimension"
        raise InputError(f"{name} is {shown(given)}; its input has shape {needed}")
    tensor: TensorProto = onnx_module("onnx.numpy_helper").from_array(array.astype(wanted), name)
    return tensor


# ------------------------------------------------------------------------ what is left


def _store(model: ModelProto, fixed: set[str], opset: int) -> int:
    """Store what follows from fixed inputs where other operations read it."""
    graph, shapes = model.graph, infer(model)
    constants = Constants(model, shapes, opset)
    following = set(fixed)
    for index, node in enumerate(graph.node):
        if index in constants.nodes and following.intersection(node.input):
            following.update(node.output)
    read = {
        name
        for index, node in enumerate(graph.node)
        if index not in constants.nodes
        for name in (*node.input, *outer_reads(node))
    }
    stored: dict[str, TensorProto] = {}
    for name in sorted(following & read - fixed - {value.name for value in graph.output}):
        with suppress(InexactError):  # an engine computes it then, as it did
            stored[name] = _written(constants, name, shapes.types.get(name))
    for node in graph.node:
        for k, name in enumerate(node.output):
            if name in stored:
                node.output[k] = f"{name}_computed"  # what else it returns may be read
    graph.initializer.extend(stored.values())
    return len(stored)


def _written(constants: Constants, name: str, kind: int | None) -> TensorProto:
    value = constants.numbers(name)
    if kind in FLOATS:
        return from_torch(value.to(FLOATS[kind]), name)
    if kind is None or value.is_floating_point():
        msg = f"the type of {name!r} is not known"
        raise InexactError(msg)
    wanted = onnx_module("onnx.helper").tensor_dtype_to_np_dtype(kind)
    array = as_array(value).astype(wanted)
    tensor: TensorProto = onnx_module("onnx.numpy_helper").from_array(array, name)
    return tensor


def _drop_unread(graph: GraphProto) -> list[str]:
    """Remove operations that no output needs, and what only they read; return their names."""
    maker = {name: node for node in graph.node for name in node.output if name}
    before = _read_by(graph.node)
    waiting, needed = [value.name for value in graph.output], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            node = maker.get(name)
            if node is not None:
                waiting += [*node.output, *node.input, *outer_reads(node)]
    gone = [node for node in graph.node if needed.isdisjoint(filter(None, node.output))]
    if not gone:
        return []
    names = [node.name or node.output[0] for node in gone]
    made = {name for node in gone for name in node.output}
    _drop(graph.node, lambda node: needed.isdisjoint(filter(None, node.output)))
    lost = before - _read_by(graph.node) - {value.name for value in graph.output}
    stored = {tensor.name for tensor in graph.initializer}
    _drop(graph.initializer, lambda tensor: tensor.name in lost)
    _drop(graph.input, lambda value: value.name in lost & stored)
    _drop(graph.value_info, lambda value: value.name in lost | made)
    _drop(graph.quantization_annotation, lambda a: a.tensor_name in lost | made)
    return names


def _read_by(nodes: Iterable[NodeProto]) -> set[str]:
    return {name for node in nodes for name in (*node.input, *outer_reads(node)) if name}


def _drop(messages: Any, is_gone: Callable[[Any], bool]) -> None:
    """Remove messages from a repeated field, without a copy of the others."""
    for index in reversed(range(len(messages))):
        if is_gone(messages[index]):
            del messages[index]
