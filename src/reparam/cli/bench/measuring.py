"""From names to models in their forms, and from models to stored times."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import reparam
from reparam._support.files import is_there
from reparam.cli.bench.blocks import count_blocks
from reparam.cli.bench.request import Request
from reparam.cli.exported_files import example, fixed_batch, is_file
from reparam.cli.options import Inputs, checked_size, refuse_names
from reparam.cli.targets import example_inputs, load_model
from reparam.cli.telling import counted
from reparam.cli.terminal import Terminal
from reparam.deploy.benchmarking import BenchmarkResult
from reparam.deploy.benchmarking.environment import cpu_count
from reparam.errors import InputError
from reparam.report.benchmarks import BUSY, model_details
from reparam.report.published import INPUT_SIZE, published

_NOT_LIVE = "measuring {cases} cases, up to {rounds} rounds{limit} ..."


_Subjects = dict[str, tuple[nn.Module | Path, dict[str, Any]]]
"""Each model in each form by its name, and what a page needs to know of it."""


def measure(request: Request, terminal: Terminal) -> BenchmarkResult:
    """Build, fold and measure what was asked for; the details a page needs are in the settings."""
    start = time.perf_counter()
    load = _load(terminal, request)
    request = _at_fixed_batch(request, terminal)
    subjects, sample = _subjects(request, terminal)
    for value in sample:
        checked_size((max(request.batches), *value.shape[1:]))
    cases = len(subjects) * len(request.engines) * len(request.precisions)
    cases *= len(request.batches) * len(request.threads)
    if not terminal.live:
        limit = "" if request.seconds is None else f" within {request.seconds:g} s"
        terminal.note(_NOT_LIVE.format(cases=cases, rounds=request.rounds, limit=limit))
    spent = time.perf_counter() - start
    with terminal.progress("Measuring", spoken=True) as update:
        result = reparam.benchmark(
            {name: model for name, (model, _) in subjects.items()},
            sample,
            engines=request.engines,
            precisions=request.precisions,
            batches=request.batches,
            threads=request.threads,
            rounds=request.rounds,
            seconds=None if request.seconds is None else max(request.seconds - spent, 1.0),
            progress=_bar(update, request.seconds, start),
        )
    about: dict[str, Any] = {
        "title": request.title,
        "created": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "command": request.as_command(),
        "models": {name: details for name, (_, details) in subjects.items()},
        "load_before": load,
    }
    if request.figure1:
        about["memory"] = [asdict(record) for record in count_blocks()]
    return replace(result, settings=result.settings | about)


def _at_fixed_batch(request: Request, terminal: Terminal) -> Request:
    """Measure at the batch that a file of fixed shape takes alone, if no other was asked for."""
    files = (name for name in request.models if is_file(name) and is_there(Path(name)))
    fixed = {name: batch for name in files if (batch := fixed_batch(name)) is not None}
    if not fixed or set(request.batches) == set(fixed.values()):
        return request
    name, batch = next(iter(fixed.items()))
    if len(set(fixed.values())) > 1 or request.batches != (1,):
        raise InputError(
            f"{name} takes {batch} inputs a call and no other number; give --batches {batch}, and "
            f"no file that takes another number"
        )
    terminal.note(f"note: {name} takes {batch} inputs a call, so that is measured")
    return replace(request, batches=(batch,))


def _load(terminal: Terminal, request: Request) -> float | None:
    """How busy the machine is with other work, where the system tells it."""
    if not hasattr(os, "getloadavg"):
        return None
    load = round(os.getloadavg()[0], 1)
    if load > BUSY * cpu_count():
        hint = "" if request.threads == (1,) else ", or give --threads 1"
        terminal.note(
            f"note: the machine is busy (load {load} on {cpu_count()} cores); for times that mean "
            f"something, wait until it is not{hint}"
        )
    return load


def _bar(
    update: Callable[[float, float, str], None], seconds: float | None, start: float
) -> Callable[[int, int, str], None]:
    """How far it is: by the steps, or by the clock where the clock decides when it ends."""

    def progress(done: int, total: int, what: str) -> None:
        share = done / total
        if seconds is not None:
            share = max(share, min((time.perf_counter() - start) / seconds, 1.0))
        update(share, 1.0, what)

    return progress


def _subjects(request: Request, terminal: Terminal) -> tuple[_Subjects, tuple[torch.Tensor, ...]]:
    """Every model in every form that was asked for, and inputs that all of them take."""
    subjects: _Subjects = {}
    inputs: Inputs = request.inputs
    sample: tuple[torch.Tensor, ...] = ()
    with terminal.progress("Building") as update:
        for number, name in enumerate(request.models):
            update(number, len(request.models), name)
            if is_file(name):
                path = Path(name)
                if not is_there(path):
                    raise InputError(
                        f"there is no file {name} to measure; give an exported file or a MODEL"
                    )
                found = example(name, inputs)
                sample, inputs = (tuple(found.values()), _the_same(found))
                subjects[name] = path, model_details(path.name)
                continue
            refuse_names(name, inputs)
            loaded = load_model(request.about.target(name), inputs)
            taken = example_inputs(loaded, inputs)
            sample, inputs = (taken,), _the_same({"": taken})
            model = loaded.model
            if request.figure1:
                model = at_published_size(name, model, taken)
            plan = reparam.plan(model, taken)
            for form in request.forms if plan.regions else ("",):
                made = plan.apply() if form == "deploy" else model
                details = model_details(name, form, **counted(made, taken[:1]))
                subjects[f"{name}, {form} form" if form else name] = made, details
    return subjects, sample


def _the_same(found: Mapping[str, torch.Tensor]) -> Inputs:
    """Ask the next model for inputs of these shapes."""
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    return Inputs(named=shapes) if len(shapes) > 1 else Inputs(shape=next(iter(shapes.values())))


class _Bordered(nn.Module):
    """A model of larger images, which gets its input with a border of zeros around it."""

    def __init__(self, model: nn.Module, border: int) -> None:
        super().__init__()
        self.model, self.border = model, border

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(functional.pad(x, (self.border,) * 4))
        return y


def at_published_size(name: str, model: nn.Module, sample: torch.Tensor) -> nn.Module:
    """The model as it computes on images of the size that its published accuracy was found on.

    Every model of a measurement gets the same input; one whose accuracy is of larger images puts a
    border of zeros around it.
    """
    known = published(name)
    if known is None or sample.shape[-2:] != (INPUT_SIZE, INPUT_SIZE) or known.size <= INPUT_SIZE:
        return model
    return _Bordered(model, (known.size - INPUT_SIZE) // 2).eval()
