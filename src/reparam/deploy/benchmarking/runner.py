"""Time models in engines, interleaved, so that one number can be compared with another."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from reparam._support.arguments import (
    FUNCTION,
    NONE,
    PATH,
    TEXT,
    a,
    check_module,
    number,
    running_on,
    several,
    takes,
    whole,
)
from reparam._support.files import is_there
from reparam._support.untouched import leaves_untouched
from reparam.deploy.benchmarking.environment import describe_environment, process_peak_bytes
from reparam.deploy.benchmarking.results import BenchmarkResult, Case, Measurement, Skipped
from reparam.deploy.engines import Settings, UnsupportedCaseError, get_engine
from reparam.deploy.engines._inputs import as_tuple, check_eval, with_batch
from reparam.deploy.engines.program import Conversion
from reparam.deploy.engines.pytorch import TorchRunner
from reparam.errors import InputError

if TYPE_CHECKING:
    from reparam.deploy.engines import Runner

Model: TypeAlias = nn.Module | str | PathLike[str] | Callable[..., Any]
"""What can be measured: a module, an exported file, or a function of the inputs."""

Progress: TypeAlias = Callable[[int, int, str], object]
"""Called with steps done, steps in all, and what is done next."""

_TURN_SECONDS = 0.02
"""A turn repeats a fast call until about this long, so that the clock's own cost vanishes."""
_MOST_CALLS = 50
_PREPARING = 0.7
"""Share of the time after which nothing more is made ready: the rest is for measuring."""
_FUNCTION = ("function",)
"""The engine named in the cases of a function, which has no engine of ours."""


@dataclass(frozen=True)
class _Entry:
    """A case made ready: its callable, and how often a turn calls it."""

    case: Case
    runner: Runner
    call: Callable[[], object]
    calls: int
    prepare_seconds: float


@takes(
    models=a("a mapping of names to models", Mapping),
    engines=several(TEXT),
    precisions=several(TEXT),
    batches=several(whole(1)) | NONE,
    threads=several(a("a whole number", int) | NONE),
    rounds=whole(1),
    seconds=number() | NONE,
    warmup=whole(0),
    seed=whole(0),
    progress=FUNCTION | NONE,
)
@leaves_untouched
def benchmark(  # noqa: PLR0913 - each is one axis of the measurement
    models: Mapping[str, Model],
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    engines: Sequence[str] = ("eager",),
    precisions: Sequence[str] = ("fp32",),
    batches: Sequence[int] | None = None,
    threads: Sequence[int | None] = (None,),
    rounds: int = 15,
    seconds: float | None = None,
    warmup: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Measure the latency of every model in every engine, precision, batch and thread count.

    Everything is made ready first. Then come ``rounds`` rounds; in each, every case has one turn,
    in an order that is drawn anew. A turn is one call that is not timed, which brings the case's
    weights back into the caches, and a few that are. So whatever disturbs the machine falls on all
    cases alike, and two cases are compared round by round
    (:meth:`~reparam.deploy.benchmarking.results.BenchmarkResult.ratio`).

    Args:
        models: What to measure, by name: modules in eval mode, paths of exported files (which run
            in the engines that read them), or functions of the inputs (which are called as they
            are, once for each batch and thread count, as the engine ``"function"``).
        example_inputs: A tensor or tuple of tensors, dimension 0 the batch.
        engines: Names of engines, see :func:`reparam.deploy.engines.engine_names`.
        precisions: ``"fp32"`` and ``"bf16"``.
        batches: Samples per call; the example inputs are cut or repeated. ``None`` takes the
            example's own batch.
        threads: CPU threads of one call; ``None`` is each engine's default.
        rounds: Number of rounds.
        seconds: Time that all of it may take, preparation included. What is not prepared when
            most of it is over is left out and listed as such, and no round begins that would not
            end in time, but for the first one. ``None`` runs every round.
        warmup: Calls of each case before the first round.
        seed: Seed of the order within the rounds.
        progress: Called with (steps done, steps in all, what comes next).

    Returns:
        The raw samples and the environment; medians, quartiles and ratios are read off it.

    Raises:
        InputError: An argument is not usable, or nothing asked for can be measured.
        MissingExtraError: An engine asked for is not installed.
        TrainingModeError: A module is in training mode.
        ExportError: A model cannot be converted for an engine.

    Example:
        >>> model = torch.nn.Linear(4, 2).eval()
        >>> result = benchmark({"linear": model}, torch.zeros(1, 4), rounds=2)
        >>> len(result["linear"].rounds)
        2
    """
    inputs = as_tuple(example_inputs)
    cases = _cases(models, inputs, engines, precisions, batches, threads)
    if seconds is not None and seconds <= 0:
        raise InputError(f"seconds is {seconds}; it must be above 0, or None")
    for name, model in models.items():
        if isinstance(model, nn.Module):
            check_eval(check_module(f"the model {name!r}", model), f"measuring {name!r}")
        elif isinstance(model, str | PathLike):
            PATH.check(f"the model {name!r}", model)
        elif FUNCTION.flaw(model) is not None:
            raise InputError(
                f"{name!r} is a {type(model).__name__}; a module, a path or a function is needed"
            )
    now = time.perf_counter()
    deadline = None if seconds is None else now + seconds
    last_call = None if seconds is None else now + _PREPARING * seconds
    steps = _Steps(len(cases) * (1 + rounds), progress)
    torch_threads = torch.get_num_threads()
    try:
        entries, skipped = _prepare_all(models, cases, inputs, warmup, steps, last_call)
        order = random.Random(seed)  # noqa: S311 - an order
        samples = _rounds(entries, rounds, order, steps, deadline)
    finally:
        torch.set_num_threads(torch_threads)
    return BenchmarkResult(
        measurements=tuple(
            Measurement(e.case, tuple(samples[e.case]), e.prepare_seconds) for e in entries
        ),
        skipped=tuple(skipped),
        environment=describe_environment() | {"torch_threads": torch_threads},
        shapes=tuple(tuple(x.shape[1:]) for x in inputs),
        settings={"rounds": len(samples[entries[0].case]), "warmup": warmup, "seed": seed},
        process_peak_bytes=process_peak_bytes(),
    )


class _Steps:
    """Counts what is done and tells whoever wants to know."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, what)
        self._done += 1


def _cases(
    models: Mapping[str, Model],
    inputs: tuple[torch.Tensor, ...],
    engines: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int] | None,
    threads: Sequence[int | None],
) -> list[Case]:
    """List what was asked for, having checked that every engine and value exists."""
    if not models:
        raise InputError("there is no model to measure; give at least one, by name")
    for engine in engines:
        get_engine(engine).require()
    for precision, count in product(precisions, threads):
        Settings(count, precision)
    sizes = [inputs[0].shape[0] if inputs[0].dim() else 1] if batches is None else list(batches)
    cases = [
        Case(name, *values)
        for name, model in models.items()
        for values in product(
            *((_FUNCTION, ("fp32",)) if _is_function(model) else (engines, precisions)),
            sizes,
            threads,
        )
    ]
    if not cases:
        raise InputError("engines, precisions, batches and threads need at least one entry each")
    return list(dict.fromkeys(cases))


def _is_function(model: Model) -> bool:
    return not isinstance(model, nn.Module | str | PathLike)


def _prepare_all(
    models: Mapping[str, Model],
    cases: Sequence[Case],
    inputs: tuple[torch.Tensor, ...],
    warmup: int,
    steps: _Steps,
    last_call: float | None,
) -> tuple[list[_Entry], list[Skipped]]:
    entries: list[_Entry] = []
    skipped = []
    for case in cases:
        if last_call is not None and entries and time.perf_counter() > last_call:
            skipped.append(Skipped(case, "no time was left to make it ready; give more seconds"))
            continue
        steps(f"preparing {case}")
        try:
            entries.append(_prepare(models[case.model], case, inputs, warmup, last_call))
        except UnsupportedCaseError as error:
            skipped.append(Skipped(case, str(error)))
    if not entries:
        reasons = "; ".join(f"{s.case}: {s.why}" for s in skipped)
        raise InputError(f"nothing that was asked for can be measured: {reasons}")
    return entries, skipped


def _prepare(
    model: Model,
    case: Case,
    inputs: tuple[torch.Tensor, ...],
    warmup: int,
    last_call: float | None,
) -> _Entry:
    batch = with_batch(inputs, case.batch)
    start = time.perf_counter()
    with running_on(repr(case.model), batch):
        runner = _runner(model, case, batch)
        prepared = time.perf_counter() - start
        runner.activate()
        call = runner.bind(batch)
        for _ in range(warmup):
            call()
            if last_call is not None and time.perf_counter() > last_call:
                break
        once = _timed(call, 1)[0]
    calls = max(1, min(_MOST_CALLS, round(_TURN_SECONDS / max(once, 1e-9))))
    return _Entry(case, runner, call, calls, prepared)


def _runner(model: Model, case: Case, inputs: tuple[torch.Tensor, ...]) -> Runner:
    settings = Settings(case.threads, case.precision)
    if not isinstance(model, nn.Module | str | PathLike):
        return TorchRunner(model, settings)
    engine = get_engine(case.engine)
    if isinstance(model, nn.Module):
        return engine.prepare(Conversion(model, inputs), settings)
    path = Path(model)
    if not is_there(path):
        raise InputError(f"there is no file {path.name!r} to measure as {case.model!r}")
    return engine.load(path, settings)


def _rounds(
    entries: Sequence[_Entry],
    rounds: int,
    order: random.Random,
    steps: _Steps,
    deadline: float | None,
) -> dict[Case, list[tuple[float, ...]]]:
    samples: dict[Case, list[tuple[float, ...]]] = {entry.case: [] for entry in entries}
    start = time.perf_counter()
    for turn in range(1, rounds + 1):
        if deadline is not None and turn > 1:
            now = time.perf_counter()
            if now + (now - start) / (turn - 1) > deadline:
                break
        for entry in order.sample(entries, len(entries)):
            steps(f"round {turn} of {rounds}: {entry.case}")
            entry.runner.activate()
            entry.call()
            samples[entry.case].append(_timed(entry.call, entry.calls))
    return samples


def _timed(call: Callable[[], object], times: int) -> tuple[float, ...]:
    """Return the seconds of each of ``times`` calls."""
    clock, seconds = time.perf_counter, []
    for _ in range(times):
        start = clock()
        call()
        seconds.append(clock() - start)
    return tuple(seconds)
