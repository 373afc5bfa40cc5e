"""Run parts of a traced program, without numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils._pytree import tree_map

from reparam.frontends.torch.effects import FACTORIES

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


class Held(dict[str, Any]):
    """What a module holds, by path, looked up once for all that lie in one."""

    def __init__(self, module: nn.Module) -> None:
        """Begin with the module itself."""
        super().__init__({"": module})

    def __missing__(self, path: str) -> Any:
        parent, _, name = path.rpartition(".")
        self[path] = found = getattr(self[parent], name)
        return found


def is_parameter_only(node: fx.Node) -> bool:
    """Whether a value is computed from parameters, buffers and plain numbers alone."""
    if node.op == "get_attr":
        return True
    inputs = node.all_input_nodes
    if not inputs:
        return node.op == "call_function" and node.target in FACTORIES
    called = node.op in {"call_function", "call_method"}
    return called and all(is_parameter_only(n) for n in inputs)


def is_literal(node: fx.Node) -> bool:
    """Whether a value is a tensor that code holds or makes, which the traced copy alone has."""
    return node.op == "get_attr" and str(node.target).startswith("_tensor_constant")


def run_graph(graph: fx.Graph, root: nn.Module, inputs: Iterable[Any]) -> Any:
    """Run a graph with the modules and tensors of ``root``.

    As torch.fx's interpreter does, which takes most of the time of a run without numbers.
    """
    read_last: dict[fx.Node, list[fx.Node]] = {}
    read: set[fx.Node] = set()
    for step in reversed(graph.nodes):
        read_last[step] = [source for source in step.all_input_nodes if source not in read]
        read.update(read_last[step])
    given, held = iter(inputs), Held(root)
    values: dict[fx.Node, Any] = {}
    for step in graph.nodes:
        if step.op == "output":
            return fx.map_arg(step.args[0], values.__getitem__)
        values[step] = next(given) if step.op == "placeholder" else _run_step(step, held, values)
        for source in read_last[step]:
            del values[source]
    return None


def run_until(node: fx.Node, twin: nn.Module, inputs: dict[str, Any]) -> Any:
    """Compute the value of a node of a graph from inputs, by name, without numbers."""
    meta = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, inputs)
    values: dict[fx.Node, Any] = {}
    held = Held(twin)
    with torch.no_grad():
        for step in _ancestors(node):
            if step.op == "placeholder":
                values[step] = meta[str(step.target)]
            else:
                values[step] = _run_step(step, held, values)
    return values[node]


def _ancestors(node: fx.Node) -> list[fx.Node]:
    """A node and all that it is computed from, in program order."""
    needed, waiting = {node}, [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                waiting.append(source)
    return [n for n in node.graph.nodes if n in needed]


def call_with_lists(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Call a module with what a node holds: its code may change the lists that it is given."""
    return module(*map(_thawed, args), **{name: _thawed(value) for name, value in kwargs.items()})


def _thawed(value: Any) -> Any:
    if type(value) is immutable_dict:
        return {key: _thawed(part) for key, part in value.items()}
    if type(value) is immutable_list or type(value) is tuple:
        parts = map(_thawed, value)
        return list(parts) if type(value) is immutable_list else tuple(parts)
    return value


def _run_step(step: fx.Node, held: Held, values: dict[fx.Node, Any]) -> Any:
    if step.op == "get_attr":
        return held[str(step.target)]
    args = fx.map_arg(step.args, values.__getitem__)
    kwargs = fx.map_arg(step.kwargs, values.__getitem__) if step.kwargs else {}
    if step.op == "call_module":
        return call_with_lists(held[str(step.target)], args, kwargs)
    if step.op == "call_method":
        return getattr(args[0], str(step.target))(*args[1:], **kwargs)
    target: Any = step.target
    return target(*args, **kwargs)
