"""Read an exported PyTorch program into normal form."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_leaves, tree_map

from reparam.diffing.aten import HANDLERS
from reparam.diffing.values import Form
from reparam.diffing.vocabulary import Vocabulary, read
from reparam.errors import UnsupportedModelError

__all__ = ["call", "changed", "read_exported", "wide"]


def read_exported(program: ExportedProgram) -> list[Form]:
    """Return the outputs of a program in normal form.

    Raises:
        UnsupportedModelError: It holds an operation that normal form does not know.

    """
    if any(_seen_elsewhere(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # which writes what is changed in place as values
    return read(lambda words: _walk(words, program))


def _walk(words: Vocabulary, program: ExportedProgram) -> list[Form]:
    stored = _stored(program)
    inputs = 0
    given: list[Any] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in stored:
            given.append(stored[node.name])
        elif node.op == "placeholder":
            given.append(words.build.input(inputs, node.meta["val"].shape))
            inputs += 1
    results = _traced(words, program.graph_module, given, ())
    specs = program.graph_signature.output_specs  # changed buffers are outputs, too
    return [
        words.form(value)
        for value, spec in zip(results, specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, Form | Tensor)
    ]


_WRAPPERS = {"wrap_with_set_grad_enabled": 2, "wrap_with_autocast": 5}
"""Operators that run a graph in a mode, and which of their arguments the graph is."""


def _traced(words: Vocabulary, graph: fx.GraphModule, given: Sequence[Any], within: Any) -> Any:
    """What a graph returns; one that stands inside of another is walked in its place."""
    known: dict[fx.Node, Any] = {}
    runs: dict[fx.Node, Any] = {}  # numbers as the program itself rounds them
    rest = iter(given)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = next(rest)
        elif node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(graph)
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            if str(node.target) in _WRAPPERS:
                *how, inner = args[: _WRAPPERS[str(node.target)]]
                if len(how) > 1 and how[2]:
                    raise UnsupportedModelError(f"autocast at {_where(node)} rounds what it runs")
                made = _traced(words, inner, args[len(how) + 1 :], (within, node))
            else:
                made = call(words, node.target, _where(node), args, kwargs)
            if isinstance(made, Tensor) and not _depends((args, kwargs)):
                plain = fx.map_arg((node.args, node.kwargs), lambda n: runs.get(n, known[n]))
                runs[node] = node.target(*plain[0], **plain[1])
                words.rounded(made, runs[node])
            known[node] = words.noted((within, node), made)
            for target in _overwritten(node):
                known[target] = known[node]
        elif node.op == "output":
            return fx.map_arg(node.args[0], known.__getitem__)
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


def call(words: Vocabulary, target: Any, where: str, args: Any, kwargs: Any) -> Any:
    """What an operator makes of forms and numbers."""
    if target is operator.getitem:
        return args[0][args[1]]
    name = str(target).removeprefix("aten.").partition(".")[0]
    if name == "_assert_tensor_metadata":  # of types that are not kept here
        return None
    if not _depends((args, kwargs)):
        args, kwargs = tree_map(wide, (args, kwargs))
        return target(*args, **kwargs)
    if name.startswith(_FRESH) or name.endswith("_like"):  # reads a shape alone
        args, kwargs = tree_map(_blank, (args, kwargs))
        return target(*args, **kwargs)
    handler = HANDLERS.get(name) or HANDLERS.get(name.removesuffix("_"))
    if handler is None:
        raise UnsupportedModelError(f"{target} at {where} has no normal form")
    return words.translated(handler, str(target), where, *args, **kwargs)


def _depends(arguments: Any) -> bool:
    return any(isinstance(value, Form) for value in tree_leaves(arguments))


_FRESH = ("new_empty", "new_full", "new_ones", "new_zeros")


def _blank(value: Any) -> Any:
    return torch.zeros(value.shape) if isinstance(value, Form) else value


def wide(value: Any) -> Any:
    """Weights that are computed from others are computed without rounding to speak of."""
    if value is torch.float32:
        return torch.float64
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(torch.float64) if floating else value


def changed(target: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """The arguments that an operator changes in place."""
    schema = getattr(target, "_schema", None)
    for position, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if leaf is not None)


def _overwritten(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that have the value of this one from here on."""
    for target in changed(node.target, node.args, node.kwargs):
        yield target
        yield from _overwritten(target)


def _seen_elsewhere(node: fx.Node) -> bool:
    """Whether a node changes memory that others see under another shape, or the caller's."""
    return any(
        target.op != "call_function" or _is_view(target) or any(map(_is_view, target.users))
        for target in _overwritten(node)
    )


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.op == "call_function"  # getitem: a part of what may be views
    return any(out.alias_info is not None and not out.alias_info.is_write for out in schema.returns)


def _where(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values())), "")
    inside = path.partition("L['self'].")[2] or path
    return inside or node.name
