"""Run parts of a traced program, without numbers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

__all__ = ["Arguments", "bind_inputs", "is_parameter_only", "run_until"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


def is_parameter_only(node: fx.Node) -> bool:
    """Whether a value is computed from parameters and buffers alone."""
    if node.op == "get_attr":
        return True
    inputs = node.all_input_nodes
    return (
        node.op in {"call_function", "call_method"}
        and bool(inputs)
        and all(is_parameter_only(n) for n in inputs)
    )


def bind_inputs(graph: fx.Graph, arguments: Arguments) -> dict[fx.Node, Any]:
    """Match the arguments of a call with the inputs of a trace; inputs not given are None."""
    positional, named = list(arguments[0]), dict(arguments[1])
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            default = node.args[0] if node.args else None
            values[node] = positional.pop(0) if positional else named.pop(str(node.target), default)
    return values


def run_until(node: fx.Node, twin: nn.Module, arguments: Arguments) -> Any:
    """Compute the value of a node of a graph, which may be unfinished, without numbers."""
    meta = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, arguments)
    values = bind_inputs(node.graph, meta)
    with torch.no_grad():
        for step in _ancestors(node):
            if step.op != "placeholder":
                values[step] = _run_step(step, twin, values)
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


def _run_step(step: fx.Node, twin: nn.Module, values: dict[fx.Node, Any]) -> Any:
    if step.op == "get_attr":
        return operator.attrgetter(str(step.target))(twin)
    args, kwargs = fx.map_arg((step.args, step.kwargs), values.__getitem__)
    if step.op == "call_module":
        return twin.get_submodule(str(step.target))(*args, **kwargs)
    if step.op == "call_method":
        return getattr(args[0], str(step.target))(*args[1:], **kwargs)
    target: Any = step.target
    return target(*args, **kwargs)
