"""Plan and apply for exported programs (``torch.export``): the third front end of one planner."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from reparam.errors import InputError
from reparam.frontends.torch.exported import Reading, path_of, read_program
from reparam.frontends.torch.lift import lift
from reparam.fusing.account import Account
from reparam.fusing.chosen import EVERYTHING, Chosen
from reparam.fusing.compare import compare_models
from reparam.fusing.exported_edit import write_program
from reparam.fusing.fold import FoldedLayer, doubt_of, fold_all
from reparam.fusing.found import Found, complete, describe
from reparam.fusing.objections import Objections
from reparam.fusing.plans import FoldWarning, Plan, Region, region_record
from reparam.planner import select
from reparam.reasons import Why

if TYPE_CHECKING:
    from reparam.fusing.asked import Fixed, Outputs
    from reparam.fusing.chosen import Where

__all__ = ["ExportedPlan", "plan_exported"]

_SIZE = 32
"""What a size is that may vary, to run the programs side by side, as far as its range allows."""


@dataclass(frozen=True, eq=False)
class ExportedPlan(Plan):
    """The plan of an exported program."""

    _reading: Reading = field(repr=False)
    _found: tuple[Found, ...] = field(repr=False)

    def apply(self) -> ExportedProgram:
        """Write the fused program: a new one, with the same inputs, outputs and dynamic shapes.

        What is left of its parameters and buffers keeps its name and is copied. Each folded layer
        is compared with the operations that it replaces in float64, at the interior and the
        borders; one that does not agree is not used. The programs are then run side by side.

        Raises:
            VerificationError: The new program computes something else than the old one; nothing is
                returned. (This would be a defect of this package.)

        Warns:
            FoldWarning: A folded layer did not agree; its region was left as it is.

        """
        folded: list[tuple[Found, FoldedLayer]] = []
        for found, layer in fold_all(self._found):
            if layer.doubt is None:
                folded.append((found, layer))
                continue
            place = found.block or "the program"
            warnings.warn(f"{place} is left as it is: {layer.doubt}", FoldWarning, stacklevel=2)
        together = set(complete((found for found, _ in folded), self._found))
        old = self._reading.program
        fused = write_program(self._reading, [pair for pair in folded if pair[0] in together])
        if folded:
            compare_models("the program", old.module(), fused.module(), _example(old))
        return fused


def plan_exported(
    program: ExportedProgram, where: Where | None = None, outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> ExportedPlan:  # fmt: skip
    """Read an exported program and say what folds in it; nothing is changed.

    Args:
        program: A program of ``torch.export``, as it was exported or decomposed to core ATen.
        where: Names of modules that it was exported from, patterns of these, or a function of the
            name and the node; only what lies there folds.
        outputs: Not for programs.
        fixed: Not for programs.

    Raises:
        InputError: Nothing in it is chosen, or results or inputs are.

    """
    if outputs is not None or fixed is not None:
        asked = "outputs" if fixed is None else "fixed"
        raise InputError(
            f"{asked}= is for modules and ONNX files, and this is an exported program; fold and "
            f"cut the module, and export what comes out"
        )
    reading = read_program(program)
    lifted = lift(reading.trace)
    account = Account()
    objections = Objections(lifted, {}, {}, _chosen(program, where))
    selection = select(lifted.program, objections)
    every = [describe(lifted, region) for region in selection.regions]
    kept = []
    for found in every:
        doubt = doubt_of(found)
        if doubt is None:
            kept.append(found)
        else:
            account.leave_region(found.region, doubt)
    together = complete(kept, every)
    for found in kept:
        if found not in together:
            account.leave_region(found.region, Why.NOT_TOGETHER())
    account.explain(selection)
    keys = {node.key for found in together for node in found.region.nodes}
    return ExportedPlan(
        tuple(map(_region, together)),
        account.settle(keys),
        (),
        reading,
        tuple(together),
    )


def _region(found: Found) -> Region:
    return region_record(
        found.region,
        found.block or "the program",
        positions=None,  # sizes may vary
        bytes_each=found.like.element_size(),
    )


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
