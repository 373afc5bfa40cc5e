"""What folds in an exported program (``torch.export``): read as a trace, written as a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from reparam.frontends.torch.exported import path_of, read_program
from reparam.frontends.torch.rules import lift
from reparam.fusing.chosen import EVERYTHING, Chosen
from reparam.fusing.compare import compare_models
from reparam.fusing.exported_edit import write_program
from reparam.fusing.fold import FoldedLayer
from reparam.fusing.module_fold import TracedDiscovery, doubt_of
from reparam.fusing.sites import ModuleSite
from reparam.fusing.vetoes import Vetoes

if TYPE_CHECKING:
    from reparam.fusing.chosen import Where

_SIZE = 32
"""What a size is that may vary, to run the programs side by side, as far as its range allows."""


class ExportedDiscovery(TracedDiscovery[ExportedProgram]):
    """Everything found in a program.

    Args:
        program: A program of ``torch.export``, as it was exported or decomposed to core ATen.
        where: Names of modules that it was exported from, patterns of these, or a function of the
            name and the node; only what lies there folds.

    Raises:
        InputError: Nothing in it is chosen.

    """

    whole = "the program"

    def __init__(self, program: ExportedProgram, where: Where | None = None) -> None:
        """Read the program; it is not changed."""
        super().__init__()
        self._reading = read_program(program)
        lifted = lift(self._reading.trace)
        vetoes = Vetoes(lifted, {}, {}, _chosen(program, where))
        self.keep(*self.found_in(lifted, vetoes), doubt_of)

    def positions(self, found: ModuleSite) -> int | None:
        """Not known, as sizes may vary; to ask a symbolic one would bind the program to it."""
        del found
        return None

    def write(self, folded: Sequence[tuple[ModuleSite, FoldedLayer]]) -> ExportedProgram:
        """Make the new program."""
        return write_program(self._reading, folded)

    def checked(self, fused: ExportedProgram, *, edited: bool) -> ExportedProgram:
        """Run the two programs side by side."""
        old = self._reading.program
        if edited:
            compare_models(self.whole, old.module(), fused.module(), _example(old))
        return fused


def _chosen(program: ExportedProgram, where: Where | None) -> Chosen:
    if where is None:
        return EVERYTHING
    nodes = {path_of(node): node for node in program.graph.nodes if node.op == "call_function"}
    around = {path[:k] for path in nodes for k, letter in enumerate(path) if letter == "."}
    return Chosen(where, {**dict.fromkeys(sorted(around)), **nodes})


def _example(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs to run the program on: those of its example, or of the shapes that it declares."""
    if program.example_inputs is not None:
        positional, named = program.example_inputs
        return tuple(positional), dict(named)
    names = list(program.graph_signature.user_inputs)
    shapes = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    values = [_made(program, shapes.get(name), name) for name in names]
    spec = program.call_spec.in_spec
    example: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(values, spec)
    return example


def _made(program: ExportedProgram, value: Any, literal: Any) -> Any:
    """Make an input of a declared shape."""
    if not isinstance(value, Tensor):
        return literal if value is None else _size(program, value)
    shape = [_size(program, size) for size in value.shape]
    if value.is_floating_point():
        return torch.randn(shape).to(value.dtype)
    return torch.zeros(shape, dtype=value.dtype)


def _size(program: ExportedProgram, size: Any) -> Any:
    if isinstance(size, int):
        return size
    ranges = program.range_constraints.get(size.node.expr)
    if ranges is None:
        return _SIZE
    low, high = int(ranges.lower), ranges.upper
    return max(low, _SIZE) if high > _SIZE else int(high)
