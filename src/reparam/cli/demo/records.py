"""From what the rooms below return to the records that a page is drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from reparam.cli.counts import counted
from reparam.models import ParallelSum
from reparam.report.benchmarks import engine_label, timing_record
from reparam.report.numbers import error
from reparam.report.results import (
    BlockRecord,
    BranchRecord,
    CheckRecord,
    LatencyRecord,
    MemoryRecord,
    ModelRecord,
    TraceRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    import reparam
    from reparam.deploy.benchmarking import BenchmarkResult, MemoryTrace

__all__ = [
    "block_record",
    "check_record",
    "latency_record",
    "memory_record",
    "model_record",
    "trace_record",
]

ENGINES = {name: engine_label(name) for name in ("eager", "onnxruntime")}
"""What the story is told in, with the names on the page; it compares in the one called eager."""

_OPERATORS = {
    "_native_batch_norm_legit_no_training": "BN",
    "add": "add",
    "add_": "add",
    "relu": "ReLU",
    "relu_": "ReLU",
}


def model_record(
    key: str, label: str, role: str, model: nn.Module, image: torch.Tensor, note: str = ""
) -> ModelRecord:
    """Count what a model executes and stores for one image."""
    return ModelRecord(key=key, label=label, role=role, note=note, **counted(model, image))


def block_record(model: nn.Module, plan: reparam.Plan[Any]) -> BlockRecord | None:
    """The folded block with the most branches, to draw it; None if nothing parallel folds."""
    sums = {
        region.where: module
        for region in plan.regions
        if isinstance(module := model.get_submodule(region.where), ParallelSum)
    }
    if not sums:
        return None
    where = max(sums, key=lambda name: len(list(sums[name].children())))
    into = next(region.into for region in plan.regions if region.where == where)
    branches = tuple(BranchRecord(_operators(branch)) for branch in sums[where].children())
    return BlockRecord(
        where=where,
        before=branches,
        after=(BranchRecord((_short(into),)),),
        tail=("ReLU",),
        caption=f"The {len(branches)} parallel branches that were trained, and the one layer "
        f"that computes the same: {into}.",
    )


def _operators(branch: nn.Module) -> tuple[str, ...]:
    layers = [branch] if not list(branch.children()) else list(branch.children())
    return tuple(_layer_name(layer) for layer in layers)


def _layer_name(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        return "conv " + "×".join(str(side) for side in layer.kernel_size)
    if isinstance(layer, nn.BatchNorm2d):
        return "BN"
    return type(layer).__name__


def _short(into: str) -> str:
    """The kernel of a layer in words: ``3x3 conv 32->32, padding 1`` is drawn as conv 3×3.

    >>> _short("3x3 conv 32->32, padding 1")
    'conv 3×3'
    """
    size, _, _ = into.partition(" ")
    return f"conv {size.replace('x', '×')}"


def check_record(
    what: str, names: tuple[str, str], verdict: reparam.Verdict, agree: tuple[int, int] | None
) -> CheckRecord:
    """A verdict; `names` are reference and candidate, `agree` is (equal predictions, images)."""
    equal, total = agree or (None, None)
    return CheckRecord(
        what=what,
        reference=names[0],
        candidate=names[1],
        max_abs=verdict.max_abs,
        max_rel=verdict.max_rel,
        ok=verdict.ok,
        tolerance=error(verdict.tolerance),
        agree=equal,
        total=total,
    )


def latency_record(
    title: str, result: BenchmarkResult, keys: Mapping[str, str], threads: int, note: str = ""
) -> LatencyRecord:
    """The rounds of one benchmark; `keys` are the models' keys by their names in it."""
    rows = tuple(timing_record(keys[m.case.model], m) for m in result.measurements)
    shape = (result.measurements[0].case.batch, *result.shapes[0])
    return LatencyRecord(title=title, input_shape=shape, threads=threads, rows=rows, note=note)


def trace_record(
    key: str, label: str, block: nn.Module, trace: MemoryTrace, *, planned: bool
) -> TraceRecord:
    """The life of a block's activations.

    With `planned` the paper's count is taken: what is held between two operators when each tensor
    goes after its last use. Without, what was alive while eager PyTorch ran each operator.
    """
    steps = [step for step in trace.steps if step.op != "empty"]
    live = [(s.planned_held if planned else s.working).total for s in steps]
    return TraceRecord(
        model=key,
        label=label,
        operators=tuple(_step_name(block, step.op, step.module) for step in steps),
        live_bytes=tuple(live),
        peak_bytes=max(live),
    )


def _step_name(block: nn.Module, op: str, module: str) -> str:
    if op == "convolution":
        return _layer_name(block.get_submodule(module))
    return _OPERATORS.get(op, op)


def memory_record(
    title: str, scope: str, image: torch.Tensor, traces: Iterable[TraceRecord], note: str
) -> MemoryRecord:
    """Traces of pieces that ran on the same input."""
    return MemoryRecord(
        title=title,
        scope=scope,
        input_shape=tuple(image.shape),
        input_bytes=image.untyped_storage().nbytes(),
        traces=tuple(traces),
        note=note,
    )
