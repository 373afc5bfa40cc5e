"""Write an ONNX model anew with layers in the place of its folded regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from reparam.algebra import layer_arguments
from reparam.frontends.onnx.inputs import FIRST_SEPARATE_INITIALIZERS, open_sizes
from reparam.frontends.onnx.lift import OnnxLifted
from reparam.frontends.onnx.nodes import in_order, inner_graphs, outer_reads
from reparam.frontends.onnx.tensors import FLOATS, from_torch, onnx_module
from reparam.fusing.driver import Site
from reparam.fusing.fold import FoldedLayer
from reparam.program import Affine, HostedInput, Node, Sum

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_BARE_GEMM = 11
"""Opset from which Gemm needs no addend."""


def write_model(lifted: OnnxLifted, folded: Sequence[tuple[Site, FoldedLayer]]) -> ModelProto:
    """Make the new model; the old one is only read.

    Names of inputs, outputs and untouched operations, metadata, opsets and symbolic sizes stay.
    """
    edits = _Edits(lifted)
    for found, layer in folded:
        edits.merge(found, layer)
    absorbed = (node for found, _ in folded for node in found.absorbed)
    kept = {index: _kept(lifted, node) for node in absorbed for index in lifted.indices_of(node)}
    for index in sorted(kept):
        edits.pass_through(index, kept[index])
    for shift in dict.fromkeys(shift for found, _ in folded for shift in found.region.shifts):
        edits.add_instead(shift)
    return edits.finish()


def _kept(lifted: OnnxLifted, node: Node) -> str | None:
    """What a sum that was moved returns where it stood."""
    kept = node.kept if isinstance(node, Sum) else None
    return None if kept is None else lifted.name_of(kept)


class _Edits:
    def __init__(self, lifted: OnnxLifted) -> None:
        self._lifted = lifted
        self._old = lifted.model.graph
        self._helper = onnx_module("onnx.helper")
        self._inserted: dict[int, list[NodeProto]] = {}
        self._removed: set[int] = set()
        self._renamed: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}
        self._wished: dict[str, str] = {}
        self._taken = _names(self._old)

    def merge(self, found: Site, layer: FoldedLayer) -> None:
        """Put one layer in the place of the operations of a region that stand together."""
        indices = sorted({i for node in found.core for i in self._lifted.indices_of(node)})
        output = self._lifted.name_of(found.region.output)
        self._inserted[indices[0]] = self._layer(found, layer, output)
        for index in indices:
            self._removed.add(index)
            for name in self._old.node[index].output:
                if name and name != output:
                    # Only readers of its shape can be left, and the result has the same.
                    self._renamed[name] = output

    def pass_through(self, index: int, kept: str | None) -> None:
        """Let an operation return what it reads, or that of several."""
        if index in self._removed:
            return
        node = self._old.node[index]
        read = (name for name in node.input if name not in self._lifted.constants)
        source = kept or next(read)
        self._removed.add(index)
        if node.output[0] in self._seen_from_outside():
            twin = self._helper.make_node("Identity", [source], [node.output[0]], name=node.name)
            self._inserted[index] = [twin]
        else:
            self._renamed[node.output[0]] = source

    def add_instead(self, shift: Affine) -> None:
        """Let an addition of constants add others, those of a node that has its place."""
        [index], bias = self._lifted.indices_of(shift), shift.leaf.load(None).bias
        if index in self._removed or bias is None or shift.axis is None:
            return
        node = self._old.node[index]
        read = next(name for name in node.input if name not in self._lifted.constants)
        old = next(name for name in node.input if name in self._lifted.constants)
        dtype = FLOATS[self._lifted.constants.type(old) or 1]
        name = self._in_place_of(old)
        self._tensors[name] = bias.to(dtype).view(-1, *(1,) * (-1 - shift.axis))
        twin = self._helper.make_node("Add", [read, name], [node.output[0]], name=node.name)
        self._removed.add(index)
        self._inserted[index] = [twin]

    def finish(self) -> ModelProto:
        """Copy everything that stays, and put the new layers in."""
        nodes: list[NodeProto] = []
        for index, node in enumerate(self._old.node):
            nodes += self._inserted.get(index, [])
            if index not in self._removed:
                nodes.append(node)
        nodes = [self._with_names(node) for node in nodes]
        unread = self._unread(nodes)
        self._take_old_names(nodes, unread)
        model: Any = onnx_module().ModelProto()
        for name, value in self._lifted.model.ListFields():
            if name.name != "graph":
                _set(model, name.name, value)
        graph = model.graph
        for name, value in self._old.ListFields():
            if name.name not in {"node", "initializer", "value_info", "quantization_annotation"}:
                _set(graph, name.name, value)
        graph.node.extend(in_order([n for n in nodes if not unread.issuperset(n.output)]))
        self._write_tensors(graph, unread)
        made = {name for node in graph.node for name in node.output}
        made |= {v.name for v in (*graph.input, *graph.initializer)}
        graph.value_info.extend(v for v in self._old.value_info if v.name in made)
        graph.quantization_annotation.extend(
            a for a in self._old.quantization_annotation if a.tensor_name in made
        )
        open_sizes(model)
        return model  # type: ignore[no-any-return]

    # ---------------------------------------------------------------- layers

    def _layer(self, found: Site, layer: FoldedLayer, output: str) -> list[NodeProto]:
        anchor = self._lifted.layer_of(found.region.anchor)
        if isinstance(found.region.source, HostedInput):
            return [self._hosted(found, layer, anchor, output)]
        source = self._lifted.name_of(found.region.source)
        if found.region.norm is not None:
            norm = self._hosted(found, layer, anchor, output)
            norm.input[0] = source
            norm.input.extend(anchor.input[3:5])
            return [norm]
        if layer.arguments.dims == 0:
            return self._linear(found, layer, source, output)
        _, full = layer_arguments(found.region.geometry)
        arguments, pads = layer.arguments, full.padding()
        return [
            self._helper.make_node(
                "Conv", [source, *self._store(found, layer.weight, layer.bias)], [output],
                name=anchor.name, dilations=list(arguments.dilation), group=arguments.groups,
                kernel_shape=list(arguments.kernel_size),
                pads=[low for low, _ in pads] + [high for _, high in pads],
                strides=list(arguments.stride),
            )
        ]  # fmt: skip

    def _linear(self, found: Site, layer: FoldedLayer, source: str, output: str) -> list[NodeProto]:
        anchor, make = self._lifted.layer_of(found.region.anchor), self._helper.make_node
        flat = self._lifted.shapes.rank(self._lifted.name_of(found.region.source)) == 2
        complete = layer.bias is not None or self._lifted.opset >= _BARE_GEMM
        if complete and (flat or anchor.op_type == "Gemm"):
            names = self._store(found, layer.weight, layer.bias)
            return [make("Gemm", [source, *names], [output], name=anchor.name, transB=1)]
        weight, *bias = self._store(found, layer.weight.T.contiguous(), layer.bias)
        if not bias:
            return [make("MatMul", [source, weight], [output], name=anchor.name)]
        product = self._free(f"{output}_product")
        return [
            make("MatMul", [source, weight], [product], name=anchor.name),
            make("Add", [product, *bias], [output], name=self._free(f"{anchor.name}_bias")),
        ]

    def _hosted(self, found: Site, layer: FoldedLayer, anchor: NodeProto, output: str) -> NodeProto:
        twin: Any = type(anchor)()
        twin.CopyFrom(anchor)
        del twin.input[1:], twin.output[:]
        twin.input.extend(self._store(found, layer.weight, layer.bias))
        twin.output.append(output)
        return twin  # type: ignore[no-any-return]

    def _store(self, found: Site, weight: Tensor, bias: Tensor | None) -> list[str]:
        """Name the numbers of a layer: as those that they replace, if nothing else reads these."""
        old = self._lifted.reads(found.region.anchor)
        name = self._in_place_of(old[0])
        self._tensors[name] = weight
        if bias is None:
            return [name]
        if len(old) > 1:
            second = self._in_place_of(old[1])
        else:
            stem, dot, last = old[0].rpartition(".")
            second = self._free(f"{stem}.bias" if dot and last == "weight" else f"{old[0]}_bias")
        self._tensors[second] = bias
        return [name, second]

    def _in_place_of(self, old: str) -> str:
        """A new name, to be given up for the old one if that turns out to be unread."""
        name = self._free(f"{old}_fused")
        self._wished[name] = old
        return name

    def _take_old_names(self, nodes: list[NodeProto], unread: set[str]) -> None:
        first: dict[str, str] = {}  # an old name can be taken once
        for new, old in self._wished.items():
            if old in unread:
                first.setdefault(old, new)
        names = {new: old for old, new in first.items()}
        for node in nodes:
            for k, name in enumerate(node.input):
                if name in names:
                    node.input[k] = names[name]
        self._tensors = {names.get(name, name): value for name, value in self._tensors.items()}

    def _free(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate)
        return candidate

    # ---------------------------------------------------------------- the rest of the graph

    def _seen_from_outside(self) -> set[str]:
        outer = (name for node in self._old.node for name in outer_reads(node))
        return {value.name for value in self._old.output}.union(outer)

    def _with_names(self, node: NodeProto) -> NodeProto:
        """Copy an operation that reads a value under another name now."""
        if not any(name in self._renamed for name in node.input):
            return node
        twin: Any = type(node)()
        twin.CopyFrom(node)
        for k, name in enumerate(twin.input):
            twin.input[k] = self._present_name(name)
        return twin  # type: ignore[no-any-return]

    def _present_name(self, name: str) -> str:
        while name in self._renamed:
            name = self._renamed[name]
        return name

    def _unread(self, nodes: list[NodeProto]) -> set[str]:
        """Constants that only removed operations read, and what only they are computed from."""
        read: dict[str, int] = {}
        for node in nodes:
            for name in {*node.input, *outer_reads(node)}:
                read[name] = read.get(name, 0) + 1
        for value in self._old.output:
            read[value.name] = read.get(value.name, 0) + 1
        maker = {name: node for node in nodes for name in node.output}
        waiting = [name for index in self._removed for name in self._old.node[index].input]
        unread: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in unread or read.get(name, 0) or name not in self._lifted.constants:
                continue
            unread.add(name)
            made_by = maker.get(name)
            if made_by is not None and all(not read.get(n, 0) for n in made_by.output):
                for source in set(made_by.input):
                    read[source] -= 1
                    waiting.append(source)
        return unread

    def _write_tensors(self, graph: Any, unread: set[str]) -> None:
        listed = self._lifted.model.ir_version < FIRST_SEPARATE_INITIALIZERS
        if listed:
            kept = [v for v in graph.input if v.name not in unread | set(self._tensors)]
            del graph.input[:]
            graph.input.extend(kept)
        left = dict(self._tensors)
        for tensor in self._old.initializer:
            if tensor.name in left:
                graph.initializer.append(from_torch(left.pop(tensor.name), tensor.name))
            elif tensor.name not in unread:
                graph.initializer.append(tensor)
        for name, value in left.items():
            graph.initializer.append(from_torch(value, name))
        for tensor in graph.initializer if listed else ():
            if tensor.name in self._tensors:
                graph.input.append(
                    self._helper.make_tensor_value_info(
                        tensor.name, tensor.data_type, list(tensor.dims)
                    )
                )


def _names(graph: GraphProto) -> set[str]:
    """All names in a graph, those in the graphs of its operations included."""
    found = {tensor.name for tensor in graph.initializer} | {v.name for v in graph.input}
    for node in graph.node:
        found |= {*node.input, *node.output, node.name}
        found = found.union(*map(_names, inner_graphs(node)))
    return found


def _set(target: Any, name: str, value: Any) -> None:
    """Copy one field of a message."""
    if hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    elif isinstance(value, str | bytes | int | float):
        setattr(target, name, value)
    else:
        getattr(target, name).extend(value)
