"""The fastest engine for one model on this machine, and the file it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reparam
from reparam._support.files import check_destination
from reparam.cli.bench.request import Request
from reparam.cli.exported_files import is_file
from reparam.cli.groups import command
from reparam.cli.options import Inputs, Target
from reparam.cli.targets import example_inputs, load_model
from reparam.cli.terminal import Terminal
from reparam.deploy.benchmarking import Pick, Ratio, pick
from reparam.deploy.engines._inputs import with_batch
from reparam.deploy.exporting import ExportResult
from reparam.deploy.exporting.formats import suffixes
from reparam.errors import InputError
from reparam.report.benchmarks import engine_label
from reparam.report.numbers import significant

_TRAIN = "train"
"""The net as trained, among the forms of a pick; the fused net is its model."""


@dataclass(frozen=True, eq=False)
class Picked:
    """The engine and the form that were found, and the file if one was asked for."""

    target: Target
    inputs: Inputs
    found: Pick
    written: ExportResult | None

    @property
    def form(self) -> str:
        """The fastest form, as it is called on the command line."""
        return "train" if self.found.form == _TRAIN else "deploy"

    def gains(self) -> dict[str, Ratio]:
        """How many times as long the train form takes as the fused one, engine by engine."""
        found = {}
        for row in self.found.rows:
            gain = self.found.gain(_TRAIN, row.engine, row.precision)
            if row.model == _TRAIN and gain is not None:
                found[engine_label(row.engine, row.precision)] = gain
        return found

    def as_dict(self) -> dict[str, Any]:
        """The outcome for a program."""
        case = self.found.measurement.case
        return {
            "model": self.target.name,
            "fastest": {"engine": case.engine, "precision": case.precision},
            "form": self.form,
            "train_over_deploy": {label: gain.median for label, gain in self.gains().items()},
            "milliseconds": 1e3 * self.found.measurement.latency.median,
            "suffix": self.found.suffix,
            "engines": [row.as_dict() for row in self.found.rows],
            "export": None if self.written is None else self.written.as_dict(),
        }


def picked(request: Request, terminal: Terminal, *, stem: Path | None) -> Picked:
    """Fuse the model, compare its forms in every engine, time what agrees, write the fastest."""
    name = _one_model(request)
    if stem is not None:
        if stem.suffix.lower() in suffixes():
            raise InputError(
                f"with --pick the engine decides the format; give -o without {stem.suffix!r}, as "
                f"in -o {stem.with_suffix('')}"
            )
        check_destination(stem)
    target = request.about.target(name)
    loaded = load_model(target, request.inputs)
    sample = with_batch((example_inputs(loaded, request.inputs),), request.batches[0])[0]
    with terminal.progress("Comparing and measuring") as update:
        fused = reparam.fuse(loaded.model, sample)
        found = pick(
            fused,
            sample,
            reference=loaded.model,
            forms={_TRAIN: loaded.model} if "train" in request.forms else None,
            engines=request.engines,
            precisions=request.precisions,
            threads=request.threads[0],
            rounds=request.rounds,
            progress=update,
        )
        written = None
        if stem is not None:
            form, model = ("train", loaded.model) if found.form == _TRAIN else ("fused", fused)
            written = found.export(
                model, stem, sample, reference=loaded.model, form=form, source=name
            )
    return Picked(target, request.inputs, found, written)


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


def _row(engine: str, precision: str, picked: Picked) -> list[str]:
    """One engine: the times of its forms, the worst error, and what fusing does there."""
    found = picked.found
    rows = [r for r in found.rows if r.way[1:] == (engine, precision)]
    times = []
    for form in dict.fromkeys(row.model for row in found.rows):
        timed = found.measured(form, engine, precision)
        times.append("-" if timed is None else significant(1e3 * timed.latency.median))
    label = engine_label(engine, precision)
    ran = [row.parity for row in rows if row.parity is not None]
    if not ran:
        return [label, *times, "-", "cannot run it"]
    worst = max(ran, key=lambda parity: (not parity.ok, parity.max_abs))
    told = f"{'agrees' if worst.ok else 'differs'} ({worst.tolerance:.1e})"
    return [label, *times, f"{worst.max_abs:.1e}", told]


def _verdicts(picked: Picked) -> Iterator[str]:
    """What fusing does in each engine, where that is clear of the noise."""
    for label, gain in picked.gains().items():
        spread = gain.quartiles
        if spread.q3 < 1:
            yield f"{label}: the fused net is slower here, {gain.median:.2f} times as fast"
        elif spread.q1 <= 1:
            yield f"{label}: fusing changes nothing that can be told from noise"
        else:
            yield f"{label}: the fused net is {gain.median:.2f} times as fast as the train form"


def tell_picked(terminal: Terminal, picked: Picked) -> None:
    """Print how the engines compare, and what was written."""
    found = picked.found
    forms = dict.fromkeys(row.model for row in found.rows)
    times = [f"{'train' if form == _TRAIN else 'fused'}, ms" for form in forms]
    columns = ["", *times, "largest error", "verdict (allowed)"]
    engines = dict.fromkeys(row.way[1:] for row in found.rows)
    rows = [_row(*each, picked) for each in engines]
    terminal.table("Engines on this machine", columns, rows)
    for verdict in _verdicts(picked):
        terminal.hint("Note:", verdict)
    for row in found.rows:
        if row.parity is None and row.model != _TRAIN:
            terminal.hint("Note:", f"{engine_label(row.engine, row.precision)}: {row.why}")
    case = found.measurement.case
    label = engine_label(case.engine, case.precision)
    terminal.done(f"{label} is the fastest of those that agree with the trained model")
    if picked.form == "train":
        terminal.hint("Note:", "the train form is the fastest there, so that it is what is picked")
    if picked.written is None:
        terminal.hint("Next:", f"add -o NAME to write NAME{found.suffix}, which it reads")
        return
    terminal.done(f"Wrote {picked.written.path} ({picked.written.size_bytes / 1e6:.1f} MB)")
    if case.precision != "fp32":
        terminal.hint("Note:", f"the file holds float32; have {label} run it in {case.precision}")
    model, *options = picked.target.words()
    words = [model, str(picked.written.path), *options, *picked.inputs.words()]
    terminal.hint("Next:", command("verify", *words))
