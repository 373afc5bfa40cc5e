"""Write an exported program with its folded regions: new numbers, fewer operations."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputSpec,
    TensorArgument,
)

from reparam.algebra import LayerArguments, flat_pads
from reparam.frontends.hosted import rebuilt
from reparam.frontends.kinds import AnyBatchNorm
from reparam.frontends.torch.exported import Reading
from reparam.fusing.fold import FoldedLayer
from reparam.fusing.sites import ModuleSite
from reparam.program import Node

aten = torch.ops.aten


def write_program(
    reading: Reading, folded: Iterable[tuple[ModuleSite, FoldedLayer]]
) -> ExportedProgram:
    """Make the new program; the old one is only read."""
    writer = _Writer(reading)
    every = list(folded)
    for found, layer in every:
        writer.merge(found, layer)
    for found, _ in every:
        writer.erase(found)
    return writer.finish()


class _Writer:
    def __init__(self, reading: Reading) -> None:
        program = reading.program
        self._reading, self._program = reading, program
        self._graph = fx.Graph()
        self._of: dict[fx.Node, fx.Node] = {}
        result: Any = self._graph.graph_copy(program.graph, self._of)
        end = next(n for n in program.graph.nodes if n.op == "output")
        self._graph.output(result).meta.update(end.meta)
        for old, new in self._of.items():
            new.name = old.name  # torch.fx renames what is called like a builtin of Python
        self._specs: list[InputSpec] = list(program.graph_signature.input_specs)
        self._state = {name: _own(tensor) for name, tensor in program.state_dict.items()}
        self._constants = dict(program.constants)
        self._gone: dict[fx.Node, fx.Node] = {}
        self._held = set(reading.stored)
        self._taken: set[str] = set()
        self._fake = _fake_mode(program)
        self._unread = {self._of[node] for node in self._of if not node.users}

    # ------------------------------------------------------------------------ one region

    def merge(self, found: ModuleSite, layer: FoldedLayer) -> None:
        """Put one layer in the place of the core operations of a region."""
        core = sorted(found.core, key=lambda n: n.order)
        source = self._now(self._source(found))
        host = self._reading.reader[found.lifted.node_of(found.region.anchor)]
        last = self._value(core[-1])
        first = self._of[self._reading.reader[found.lifted.node_of(core[0])]]
        weight, bias = self._numbers(host, layer, frozen=found.is_frozen)
        with self._graph.inserting_before(first):
            new = self._call(host, layer, source, weight, bias)
        new.meta = {**self._of[host].meta, **new.meta, "val": last.meta.get("val")}
        new.meta.pop("tensor_meta", None)
        for node in core:
            value = self._value(node)
            value.replace_all_uses_with(new)
            self._gone[value] = new
        for node in reversed(core):
            self._drop(node)

    def erase(self, found: ModuleSite) -> None:
        """Let the other operations of a region return their inputs."""
        for node in found.absorbed:
            value = self._value(node)
            if value in self._gone:
                continue
            origin = found.lifted.node_of(node)
            constants = found.lifted.constants
            read = next(n for n in origin.all_input_nodes if not constants.is_tensor(n))
            slot = found.slot_of(found.key_of(node))
            read = read if slot is None else origin.all_input_nodes[slot]
            kept = self._now(self._of[self._reading.value[read]])
            value.replace_all_uses_with(kept)
            self._gone[value] = kept
            self._drop(node)

    def _source(self, found: ModuleSite) -> fx.Node:
        """The value that the new layer reads, in the new graph."""
        node, position = found.entry()
        read = found.lifted.node_of(node).all_input_nodes[position]
        return self._of[self._reading.value[read]]

    def _value(self, node: Node) -> fx.Node:
        """The new graph's node whose value a planner node is."""
        return self._of[self._reading.value[node.origin]]

    def _drop(self, node: Node) -> None:
        """Erase an operation of a region, which may write to its input."""
        for table in (self._reading.value, self._reading.reader):
            made = self._of[table[node.origin]]
            if made in self._graph.nodes and not made.users:
                self._graph.erase_node(made)

    def _now(self, node: fx.Node) -> fx.Node:
        while node in self._gone:
            node = self._gone[node]
        return node

    # ------------------------------------------------------------------------ the layer

    def _call(
        self, host: fx.Node, layer: FoldedLayer, x: fx.Node, weight: fx.Node, bias: fx.Node | None
    ) -> fx.Node:  # fmt: skip
        """Write the operator, in the words of the one that it takes the place of."""
        call = self._call_function
        name = str(host.target)
        if layer.template is not None:
            new = self._with_numbers(host, x, weight, bias)
            is_norm = isinstance(layer.template, AnyBatchNorm)
            return self._value_of_norm(host, new) if is_norm else new
        arguments = layer.arguments
        if arguments.dims == 0:
            if name.startswith("aten.linear"):
                return call(aten.linear.default, (x, weight, bias))
            turned = self._with_value(call(aten.permute.default, (weight, [1, 0])))
            if bias is None:
                return call(aten.mm.default, (x, turned))
            return call(aten.addmm.default, (bias, x, turned))
        x, padding = self._padded(x, arguments)
        stride, dilation = list(arguments.stride), list(arguments.dilation)
        if name.startswith("aten.convolution"):
            zeros = [0] * arguments.dims
            numbers = (stride, padding, dilation, False, zeros, arguments.groups)
            return call(aten.convolution.default, (x, weight, bias, *numbers))
        target = (aten.conv1d, aten.conv2d, aten.conv3d)[arguments.dims - 1].default
        return call(target, (x, weight, bias, stride, padding, dilation, arguments.groups))

    def _call_function(self, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        # The arguments of fx have a recursive type, over which mypy does not come to an end.
        return self._graph.call_function(target, args, kwargs)

    def _value_of_norm(self, host: fx.Node, new: fx.Node) -> fx.Node:
        """The value of a norm, of which some operators return more."""
        if not isinstance(host.meta["val"], tuple | list):
            return new
        new.meta = dict(host.meta)
        return self._call_function(operator.getitem, (new, 0))

    def _with_numbers(
        self, host: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None
    ) -> fx.Node:
        """Write a transposed convolution or a norm as it was, with other numbers."""
        given: Any = (host.args, {k: v for k, v in host.kwargs.items() if k != "bias"})
        args: Any = fx.map_arg(given[0], lambda n: self._now(self._of[n]))
        kwargs: Any = fx.map_arg(given[1], self._of.get)
        target: Any = host.target
        return self._call_function(target, (x, weight, bias, *args[3:]), kwargs)

    def _padded(self, x: fx.Node, arguments: LayerArguments) -> tuple[fx.Node, list[int]]:
        """Pad in a step of its own where the sides differ."""
        pads = arguments.pads
        if all(low == high for low, high in pads):
            return x, [low for low, _ in pads]
        padded = self._call_function(aten.constant_pad_nd.default, (x, flat_pads(pads), 0.0))
        return self._with_value(padded), [0] * arguments.dims

    def _with_value(self, node: fx.Node) -> fx.Node:
        """Say what a new operation returns, without numbers."""
        given: Any = node.args
        args: Any = fx.map_arg(given, lambda n: n.meta["val"])
        target: Any = node.target
        node.meta["val"] = target(*args)
        return node

    # ------------------------------------------------------------------------ the numbers

    def _numbers(
        self, host: fx.Node, layer: FoldedLayer, *, frozen: bool
    ) -> tuple[fx.Node, fx.Node | None]:
        """Store weight and bias of a layer, under the names of those of the host."""
        weight, bias = layer.weight, layer.bias
        if layer.template is not None:
            module: Any = rebuilt(layer.template, layer.weight, layer.bias)
            weight, bias = module.weight.detach(), layer.bias
        if isinstance(layer.template, AnyBatchNorm):
            given: Any = host.args[1:3]
            spec, second = (None if n is None else self._stored(n) for n in given)
        else:
            old = [self._stored(n) for n in host.all_input_nodes]
            known = [spec for spec in old if spec is not None]
            by_rank = {len(self._tensor(spec).shape): spec for spec in reversed(known)}
            spec, second = by_rank.get(weight.dim()), by_rank.get(1)
        stem = "" if spec is None else str(spec.target).rpartition(".")[0]
        node = self._store(spec, f"{stem}.weight".lstrip("."), weight, frozen=frozen)
        if bias is None:
            return node, None
        name = f"{stem}.bias".lstrip(".")
        return node, self._store(second, name, bias, frozen=frozen, behind=node)

    def _stored(self, node: fx.Node) -> InputSpec | None:
        """The parameter or buffer that a node of the old graph reads, by way of a transpose."""
        while node.op == "call_function" and len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
        kinds = (InputKind.PARAMETER, InputKind.BUFFER)
        specs = self._program.graph_signature.input_specs
        return next((s for s in specs if s.arg.name == node.name and s.kind in kinds), None)

    def _tensor(self, spec: InputSpec) -> Tensor:
        return self._reading.stored[spec.arg.name]

    def _store(
        self, spec: InputSpec | None, name: str, numbers: Tensor, *, frozen: bool,
        behind: fx.Node | None = None,
    ) -> fx.Node:  # fmt: skip
        """Keep numbers in the place of others, or in a place of their own."""
        value = nn.Parameter(numbers, requires_grad=not frozen)
        if spec is not None and spec.target in self._state and spec.arg.name not in self._taken:
            self._taken.add(spec.arg.name)
            node: fx.Node = next(n for n in self._graph.nodes if n.name == spec.arg.name)
            old = self._state[spec.target]
            self._state[spec.target] = value if isinstance(old, nn.Parameter) else numbers
        else:
            target = _free(name, {*self._state, *self._constants})
            first = next(iter(self._graph.nodes)) if behind is None else behind
            insert = self._graph.inserting_before if behind is None else self._graph.inserting_after
            with insert(first):
                node = self._graph.placeholder(f"p_{target.replace('.', '_')}")
            at = 0 if behind is None else 1 + self._position(behind)
            made = InputSpec(InputKind.PARAMETER, TensorArgument(name=node.name), target)
            self._specs.insert(at, made)
            self._state[target] = value
            self._taken.add(node.name)
        node.meta["val"] = self._fake.from_tensor(value, static_shapes=True)
        node.meta.pop("tensor_meta", None)
        return node

    def _position(self, node: fx.Node) -> int:
        return next(k for k, spec in enumerate(self._specs) if spec.arg.name == node.name)

    # ------------------------------------------------------------------------ the whole

    def _drop_unread(self) -> None:
        """Drop operations, and then stored numbers, that were read and are no more."""
        for node in reversed(self._graph.nodes):
            if not node.users and node not in self._unread and _is_pure(node):
                self._graph.erase_node(node)
        inputs = {node.name: node for node in self._graph.nodes if node.op == "placeholder"}
        stored = {spec.arg.name: spec for spec in self._specs if spec.arg.name in self._held}
        unread = {n for n in stored if not inputs[n].users and inputs[n] not in self._unread}
        norms = {_owner(stored[n]) for n in unread if _is_named(stored[n], "running_var")}
        unread |= {
            name for name, spec in stored.items()
            if _owner(spec) in norms and _is_named(spec, "num_batches_tracked")
            and not inputs[name].users
        }  # fmt: skip
        for name in unread:
            self._graph.erase_node(inputs[name])
        self._specs = [spec for spec in self._specs if spec.arg.name not in unread]
        kept = {spec.target for spec in self._specs}
        for target in {stored[name].target for name in unread} - kept:
            self._state.pop(str(target), None)
            self._constants.pop(str(target), None)

    def finish(self) -> ExportedProgram:
        """Drop what nothing reads any more, and make the program."""
        self._drop_unread()
        program = self._program
        module = fx.GraphModule(program.graph_module, self._graph)
        module.meta.update(program.graph_module.meta)
        named = {old.name: self._now(old).name for old in self._gone}
        results = [_renamed(spec, named) for spec in program.graph_signature.output_specs]
        calls = copy.deepcopy(program.module_call_graph)
        for entry in calls:
            if entry.signature is not None:
                signature = entry.signature
                signature.inputs = [_renamed_argument(arg, named) for arg in signature.inputs]
                signature.outputs = [_renamed_argument(arg, named) for arg in signature.outputs]
        return ExportedProgram(
            module, module.graph, ExportGraphSignature(self._specs, results), self._state,
            copy.deepcopy(program.range_constraints), calls, program.example_inputs,
            self._constants, verifiers=program.verifiers,
        )  # fmt: skip


def _is_pure(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and (schema is None or not schema.is_mutable)


def _renamed(spec: OutputSpec, named: dict[str, str]) -> OutputSpec:
    """An output of the signature, where it is now."""
    return OutputSpec(spec.kind, _renamed_argument(spec.arg, named), spec.target)


def _renamed_argument(argument: Any, named: dict[str, str]) -> Any:
    if isinstance(argument, TensorArgument) and argument.name in named:
        return TensorArgument(name=named[argument.name])
    return argument


def _fake_mode(program: ExportedProgram) -> Any:
    """What the program's values without numbers belong to."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    return next(v.fake_mode for v in values if hasattr(v, "fake_mode"))


def _owner(spec: InputSpec) -> str:
    return str(spec.target).rpartition(".")[0]


def _is_named(spec: InputSpec, name: str) -> bool:
    return str(spec.target).rpartition(".")[2] == name


def _own(tensor: Tensor) -> Tensor:
    twin = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, tensor.requires_grad)
    return twin


def _free(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}{number}"
    return candidate
