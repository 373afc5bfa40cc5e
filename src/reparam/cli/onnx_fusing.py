"""``plan``, ``fuse`` and ``verify`` where MODEL is an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reparam
from reparam.cli import onnx_files
from reparam.cli.notes import fold_warnings_noted
from reparam.cli.targets import Inputs
from reparam.cli.terminal import Terminal
from reparam.errors import InputError

__all__ = ["FusedFile", "fuse_file", "plan_file", "verify_file"]


@dataclass(frozen=True, eq=False)
class FusedFile:
    """What came of fusing a file: the plan, what was counted before and after, the comparison."""

    plan: reparam.Plan
    counts: tuple[dict[str, int], dict[str, int]]
    verdict: reparam.Verdict
    size_bytes: int


def plan_file(name: str, terminal: Terminal) -> reparam.Plan:
    """Read what would fold in an ONNX file."""
    with terminal.progress(f"Reading {name}"):
        return reparam.plan(onnx_files.read(name))


def fuse_file(name: str, out: Path, inputs: Inputs, terminal: Terminal) -> FusedFile:
    """Fold an ONNX file into another one, compared in ONNX Runtime before it takes its place.

    Raises:
        InputError: `out` is no ONNX file, or the input cannot be run.
        VerificationError: the two differ; nothing is written.
    """
    if not onnx_files.is_onnx(str(out)):
        raise InputError(f"an ONNX file is fused into an ONNX file; give -o a name.onnx, not {out}")
    with terminal.progress(f"Fusing {name}") as update, fold_warnings_noted(terminal):
        update(0, 3, "reading")
        model = onnx_files.read(name)
        sample = onnx_files.random_inputs(name, model, inputs)
        found = reparam.plan(model)
        update(1, 3, "folding")
        fused: Any = found.apply()
        update(2, 3, "comparing in ONNX Runtime")

        def check(path: Path) -> reparam.Verdict:
            return onnx_files.compare(Path(name), model, onnx_files.runner(path), sample)

        verdict = onnx_files.save(fused, out, check)
    counts = (onnx_files.counts(model), onnx_files.counts(fused))
    return FusedFile(found, counts, verdict, out.stat().st_size)


def verify_file(
    name: str, candidate: Callable[..., Any], inputs: Inputs
) -> tuple[reparam.Verdict, tuple[int, ...]]:
    """Compare something callable with an ONNX file; also the shape of the first input."""
    model = onnx_files.read(name)
    sample = onnx_files.random_inputs(name, model, inputs)
    return onnx_files.compare(Path(name), model, candidate, sample), tuple(sample[0].shape)
