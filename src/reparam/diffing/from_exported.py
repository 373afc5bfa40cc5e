"""Read an exported PyTorch program into normal form."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_map

from reparam.diffing.aten import HANDLERS
from reparam.diffing.values import Form
from reparam.diffing.vocabulary import Vocabulary, read
from reparam.errors import UnsupportedModelError

__all__ = ["read_exported"]


def read_exported(program: ExportedProgram) -> list[Form]:
    """Return the outputs of a program in normal form.

    Raises:
        UnsupportedModelError: It holds an operation that normal form does not know.

    """
    plain = program.run_decompositions({})
    return read(lambda words: _walk(words, plain))


def _walk(words: Vocabulary, program: ExportedProgram) -> list[Form]:
    known: dict[fx.Node, Any] = {}
    stored = _stored(program)
    inputs = 0
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in stored:
                known[node] = stored[node.name]
            else:
                known[node] = words.build.input(inputs, node.meta["val"].shape)
                inputs += 1
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = words.noted(node, _call(words, node, args, kwargs))
        elif node.op == "output":
            results = fx.map_arg(node.args[0], known.__getitem__)
            specs = program.graph_signature.output_specs  # changed buffers are outputs, too
            return [
                words.form(value)
                for value, spec in zip(results, specs, strict=True)
                if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, Form | Tensor)
            ]
    raise UnsupportedModelError("the program has no output")


def _stored(program: ExportedProgram) -> dict[str, Tensor]:
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values = {**program.state_dict, **program.constants}
    return {name: values[target].detach() for name, target in names.items()}


def _call(words: Vocabulary, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if not any(isinstance(value, Form) for value in _flat((args, kwargs))):
        assert callable(node.target)  # noqa: S101 (what a call_function node holds)
        args, kwargs = tree_map(_wide, (args, kwargs))
        return node.target(*args, **kwargs)
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    if node.target is operator.getitem:
        return args[0][args[1]]
    handler = HANDLERS.get(name.removesuffix("_"))
    if handler is None:
        raise UnsupportedModelError(f"{node.target} at {_where(node)} has no normal form")
    return handler(words, _where(node), *args, **kwargs)


def _wide(value: Any) -> Any:
    """Weights that are computed from others are computed without rounding to speak of."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(torch.float64) if floating else value


def _where(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values())), "")
    inside = path.partition("L['self'].")[2] or path
    return inside or node.name


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in _flat(each)]
    if isinstance(value, dict):
        return _flat(list(value.values()))
    return [value]
