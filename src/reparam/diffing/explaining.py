"""The smallest part of an ONNX graph that differs, as a graph of its own."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from reparam._support.files import atomic_path
from reparam._support.optional import require
from reparam.errors import InputError
from reparam.frontends.onnx.inputs import required_inputs

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto


def part_of(model: ModelProto, names: Collection[str]) -> ModelProto:
    """Return the nodes of these names as a model, with the weights and constants that they read.

    What they read otherwise are its inputs; what others read of them, or what is an output of the
    model, are its outputs.

    Raises:
        InputError: There is no node of these names.

    """
    onnx = require("onnx", extra="deploy", purpose="writing a part of an ONNX file")
    whole = onnx.shape_inference.infer_shapes(model)
    graph = whole.graph
    chosen = [node for node in graph.node if _name(node) in names]
    if not chosen:
        raise InputError("the part that differs is no node of this graph, so it is not written")
    stored = {entry.name: entry for entry in graph.initializer}
    nodes = _with_constants(whole, chosen)
    made = [name for node in nodes for name in node.output if name]
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    outside = {name for node in graph.node if node not in nodes for name in node.input}
    outside |= {entry.name for entry in graph.output}
    results = [name for name in made if name in outside] or list(chosen[-1].output)
    known = {e.name: e for e in (*graph.input, *graph.output, *graph.value_info)}

    def described(name: str) -> ValueInfoProto:
        fallback = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        found: ValueInfoProto = known.get(name, fallback)
        return found

    alone = onnx.helper.make_graph(
        nodes,
        graph.name or "part",
        [described(name) for name in read if name not in stored and name not in made],
        [described(name) for name in results],
        [stored[name] for name in read if name in stored],
    )
    part: ModelProto = onnx.helper.make_model(alone, opset_imports=model.opset_import)
    part.ir_version = model.ir_version
    return part


def write_part(
    source: str | os.PathLike[str], names: Collection[str], path: str | os.PathLike[str]
) -> None:
    """Write the part of a file that these nodes are, whole or not at all."""
    onnx = require("onnx", extra="deploy", purpose="writing a part of an ONNX file")
    part = part_of(onnx.load(source), names)
    with atomic_path(path) as temporary:
        onnx.save(part, temporary)


def _name(node: NodeProto) -> str:
    return node.name or node.output[0]


def _with_constants(model: ModelProto, chosen: list[NodeProto]) -> list[NodeProto]:
    """Add the nodes that make constants for those that were chosen, in the order of the graph."""
    varying = {entry.name for entry in required_inputs(model)}
    for node in model.graph.node:
        if not varying.isdisjoint(node.input):
            varying.update(node.output)
    needed: set[str] = set()
    wanted = []
    for node in reversed(model.graph.node):
        makes_constant = varying.isdisjoint(node.input) and not needed.isdisjoint(node.output)
        if makes_constant or node in chosen:
            needed.update(node.input)
            wanted.append(node)
    return wanted[::-1]
