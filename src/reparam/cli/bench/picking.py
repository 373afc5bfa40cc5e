"""The fastest engine for one model on this machine, and the file it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reparam
from reparam._files import check_destination
from reparam.benchmarking import ParityRow, Pick, pick
from reparam.cli.bench.measuring import is_file
from reparam.cli.bench.request import Request
from reparam.cli.notes import warnings_noted
from reparam.cli.targets import Inputs, Target, command, example_inputs, load_model
from reparam.cli.terminal import Terminal
from reparam.engines._inputs import with_batch
from reparam.errors import InputError
from reparam.exporting import ExportResult, formats
from reparam.report.benchmarks import engine_label
from reparam.report.numbers import significant

__all__ = ["Picked", "picked", "tell_picked"]


@dataclass(frozen=True, eq=False)
class Picked:
    """The engine that was found for a model, and the file for it if one was asked for."""

    target: Target
    inputs: Inputs
    found: Pick
    written: ExportResult | None

    def as_dict(self) -> dict[str, Any]:
        """The outcome for a program."""
        case = self.found.measurement.case
        return {
            "model": self.target.name,
            "fastest": {"engine": case.engine, "precision": case.precision},
            "milliseconds": 1e3 * self.found.measurement.latency.median,
            "suffix": self.found.suffix,
            "engines": [row.as_dict() for row in self.found.rows],
            "export": None if self.written is None else self.written.as_dict(),
        }


def picked(request: Request, terminal: Terminal, *, stem: Path | None) -> Picked:
    """Fuse the one model, compare it in every engine, time those that agree, write the fastest.

    Raises:
        InputError: there are several models, `stem` is of no use, or no engine agrees.
        ExportError: the file cannot be written.
    """
    name = _one_model(request)
    _check_stem(stem)
    loaded = load_model(request.target(name))
    sample = with_batch((example_inputs(loaded, request.inputs),), request.batches[0])[0]
    with terminal.progress("Comparing and measuring") as update, warnings_noted(terminal):
        fused = reparam.fuse(loaded.model, sample)
        found = pick(
            fused,
            sample,
            reference=loaded.model,
            engines=request.engines,
            precisions=request.precisions,
            threads=request.threads[0],
            rounds=request.rounds,
            progress=update,
        )
        written = None
        if stem is not None:
            written = found.export(
                fused, stem, sample, reference=loaded.model, form="fused", source=name
            )
    return Picked(request.target(name), request.inputs, found, written)


def _one_model(request: Request) -> str:
    if len(request.models) != 1 or len(request.batches) != 1 or len(request.threads) != 1:
        raise InputError(
            "--pick finds the engine for one MODEL at one batch and one number of threads; "
            f"found {len(request.models)} models, {len(request.batches)} batches and "
            f"{len(request.threads)} numbers of threads"
        )
    if is_file(request.models[0]):
        raise InputError(
            f"{request.models[0]} is in the format of one engine already; --pick takes a MODEL "
            "that can be written in every format"
        )
    return request.models[0]


def _check_stem(stem: Path | None) -> None:
    if stem is None:
        return
    if stem.suffix.lower() in {entry.suffix for entry in formats()}:
        raise InputError(
            f"with --pick the engine decides the format; give -o without {stem.suffix!r}, as in "
            f"-o {stem.with_suffix('')}"
        )
    check_destination(stem)


def _row(row: ParityRow, found: Pick) -> list[str]:
    label = engine_label(row.engine, row.precision)
    timed = [
        m
        for m in found.result.measurements
        if (m.case.engine, m.case.precision) == (row.engine, row.precision)
    ]
    time = significant(1e3 * timed[0].latency.median) if row.ok and timed else "-"
    if row.parity is None:
        return [label, "-", "-", "cannot run it"]
    error, allowed = f"{row.parity.max_abs:.1e}", f"{row.parity.tolerance:.1e}"
    return [label, time, error, f"{'agrees' if row.ok else 'differs'} ({allowed})"]


def tell_picked(terminal: Terminal, picked: Picked) -> None:
    """Print how the engines compare, and what was written."""
    found = picked.found
    columns = ["", "ms", "largest error", "verdict (allowed)"]
    rows = [_row(row, found) for row in found.rows]
    terminal.table("Engines on this machine", columns, rows)
    for row in found.rows:
        if row.parity is None:
            terminal.hint("Note:", f"{engine_label(row.engine, row.precision)}: {row.why}")
    case = found.measurement.case
    label = engine_label(case.engine, case.precision)
    terminal.done(f"{label} is the fastest of those that agree with the trained model")
    if picked.written is None:
        terminal.hint("Next:", f"add -o NAME to write NAME{found.suffix}, which it reads")
        return
    terminal.done(f"Wrote {picked.written.path} ({picked.written.size_bytes / 1e6:.1f} MB)")
    if case.precision != "fp32":
        terminal.hint("Note:", f"the file holds float32; have {label} run it in {case.precision}")
    model, *options = picked.target.words()
    words = [model, str(picked.written.path), *options, *picked.inputs.words()]
    terminal.hint("Next:", command("verify", *words))
