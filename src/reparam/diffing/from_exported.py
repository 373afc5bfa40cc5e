"""Read an exported PyTorch program into normal form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from reparam.diffing.recording import Recorder, SharedMemoryError, record
from reparam.diffing.tape import Tape
from reparam.errors import UnsupportedModelError
from reparam.frontends.torch.exported import path_of, stored_in


def read_exported(program: ExportedProgram, inputs: Sequence[Tensor]) -> Tape:
    """Return what a program does with inputs like these; see ``recording``."""
    try:
        return _read(program, inputs)
    except SharedMemoryError:  # which core operators, without changes in place, do not know
        return _read(program.run_decompositions({}), inputs)


def _read(program: ExportedProgram, inputs: Sequence[Tensor]) -> Tape:
    stored = stored_in(program)
    buffers = program.graph_signature.inputs_to_buffers  # which a run may change
    stored |= {name: stored[name].clone() for name in buffers if name in stored}
    specs = program.graph_signature.output_specs  # changed buffers are outputs, too

    def run(recorder: Recorder, inputs: list[Tensor]) -> list[Tensor]:
        rest = iter(inputs)
        given = [
            stored[node.name] if node.name in stored else next(rest)
            for node in program.graph.nodes
            if node.op == "placeholder"
        ]
        results = _Told(program.graph_module, recorder).run(*given)
        return [
            value
            for value, spec in zip(results, specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT and isinstance(value, Tensor)
        ]

    return record(run, inputs)


_WRAPPERS = {"wrap_with_set_grad_enabled": 2, "wrap_with_autocast": 5}
"""Operators that run a graph in a mode, and which of their arguments the graph is."""


class _Told(fx.Interpreter):
    """Runs a graph and says where it is."""

    def __init__(self, graph: fx.GraphModule, recorder: Recorder) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self._recorder = recorder

    def run_node(self, n: fx.Node) -> Any:
        self._recorder.path.append(_where(n))
        try:
            return super().run_node(n)
        finally:
            self._recorder.path.pop()

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if str(target) not in _WRAPPERS:
            return self._recorder.carry_out(target, args, kwargs)
        *how, inner = args[: _WRAPPERS[str(target)]]
        if len(how) > 1 and how[2]:
            raise UnsupportedModelError(
                f"autocast at {self._recorder.path[-1]} rounds what it runs"
            )
        return _Told(inner, self._recorder).run(*args[len(how) + 1 :])


def _where(node: fx.Node) -> str:
    return path_of(node) or node.name


def kinds_in(program: ExportedProgram) -> Callable[[str], str]:
    """Say of a name what it is: the class of a submodule, or else an operator."""
    kinds: dict[str, str] = {}
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        made = next((made for _, made in reversed(stack.values())), node.target)
        kinds.setdefault(_where(node), str(made).rpartition(".")[2])
    return lambda name: kinds.get(name, "")
