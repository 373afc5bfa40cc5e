"""Which engines agree with the trained model, and which of those is the fastest here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam._support.arguments import (
    FUNCTION,
    MODULE,
    NONE,
    TEXT,
    a,
    check_module,
    several,
    takes,
    whole,
)
from reparam._support.untouched import leaves_untouched
from reparam.deploy.benchmarking.runner import benchmark
from reparam.deploy.engines import (
    PRECISIONS,
    Settings,
    UnsupportedCaseError,
    engine_names,
    get_engine,
)
from reparam.deploy.engines._inputs import as_tuple, check_eval
from reparam.deploy.engines.parity import Parity, Reference
from reparam.deploy.engines.program import Conversion
from reparam.deploy.exporting import ExportResult, export, formats
from reparam.errors import ExportError, InputError, VerificationError

if TYPE_CHECKING:
    import os

    import torch
    from torch import nn

    from reparam.deploy.benchmarking.results import BenchmarkResult, Measurement, Ratio
    from reparam.deploy.benchmarking.runner import Progress

_MODEL = "model"
_WRITTEN_FOR = {"compile": "eager"}
"""Engines that run what another one's format holds."""


@dataclass(frozen=True)
class ParityRow:
    """One model in one engine, beside the model as trained.

    Attributes:
        model: The model's name.
        engine: Name of the engine.
        precision: ``"fp32"`` or ``"bf16"``.
        parity: The comparison, or ``None`` if it could not be made.
        why: Why it could not be made; empty if it was.
    """

    model: str
    engine: str
    precision: str
    parity: Parity | None
    why: str = ""

    @property
    def way(self) -> tuple[str, str, str]:
        """Model, engine and precision."""
        return self.model, self.engine, self.precision

    @property
    def ok(self) -> bool:
        """Whether the engine ran the model and agrees with the reference."""
        return self.parity is not None and self.parity.ok

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a dictionary that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Pick:
    """The fastest way to run a net on this machine, among those that agree with it.

    Attributes:
        measurement: The fastest case.
        rows: How each form in each engine that was tried compares with the reference.
        result: The measurements of all that agreed.
        suffix: Suffix of the format that engine reads.
        backend: The ``backend`` argument of :func:`reparam.export` for it.
    """

    measurement: Measurement
    rows: tuple[ParityRow, ...]
    result: BenchmarkResult
    suffix: str
    backend: str | None

    @property
    def form(self) -> str:
        """Name of the fastest form: ``"model"``, or one of ``forms`` of :func:`pick`."""
        return self.measurement.case.model

    def measured(self, form: str, engine: str, precision: str = "fp32") -> Measurement | None:
        """Return the measurement of a form in an engine, if it agreed and was measured."""
        wanted = (form, engine, precision)
        found = (m for m in self.result.measurements if m.case.way == wanted)
        return next(found, None) if any(r.way == wanted for r in self.rows if r.ok) else None

    def gain(self, form: str, engine: str, precision: str = "fp32") -> Ratio | None:
        """Return how many times as long a form takes as the model, round by round.

        Above 1 the model is faster in that engine, below 1 it is slower there. ``None`` where one
        of the two did not agree or was not measured.
        """
        other = self.measured(form, engine, precision)
        model = self.measured(_MODEL, engine, precision)
        return self.result.ratio(other.case, model.case) if other and model else None

    def export(
        self,
        model: nn.Module,
        stem: str | os.PathLike[str],
        example_inputs: torch.Tensor | Sequence[torch.Tensor],
        **options: Any,
    ) -> ExportResult:
        """Write the model in the picked engine's format at ``stem`` plus the format's suffix.

        Give the form that was picked, see :attr:`form`.

        Options are those of :func:`reparam.export`, which does the work and raises its errors.
        """
        path = Path(f"{Path(stem)}{self.suffix}")
        return export(model, path, example_inputs, backend=self.backend, **options)


def installed_engines() -> tuple[str, ...]:
    """Return the names of the engines that can be used on this machine.

    >>> "eager" in installed_engines()
    True
    """
    return tuple(name for name in engine_names() if get_engine(name).available())


def parity_table(
    models: Mapping[str, nn.Module],
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    references: Mapping[str, nn.Module] | None = None,
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
) -> tuple[ParityRow, ...]:
    """Run every model in every engine and compare it with the model as trained.

    Args:
        models: Models by name, in eval mode.
        example_inputs: Real inputs, as a tensor or tuple of tensors.
        references: The trained models by the same names; a name that is missing compares a model
            with itself in PyTorch.
        engines: Names of engines; ``None`` is every one that is installed.
        precisions: ``"fp32"`` and ``"bf16"``.

    Returns:
        One row a model, engine and precision, those included that failed, with the reason.

    Raises:
        InputError: An engine or precision does not exist.
        MissingExtraError: An engine asked for by name is not installed.
        TrainingModeError: A model is in training mode.
    """
    inputs = as_tuple(example_inputs)
    names = installed_engines() if engines is None else tuple(engines)
    for name in names:
        get_engine(name).require()
    for precision in precisions:
        Settings(precision=precision)
    rows = []
    for name, model in models.items():
        trained = (references or {}).get(name, model)
        check_eval(model, f"comparing {name!r}")
        check_eval(trained, f"comparing with the reference of {name!r}")
        reference = Reference(trained, inputs)
        for engine in names:
            for precision in precisions:
                found, why = _compare(engine, precision, model, inputs, reference)
                rows.append(ParityRow(name, engine, precision, found, why))
    return tuple(rows)


def _compare(
    engine: str,
    precision: str,
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    reference: Reference,
) -> tuple[Parity | None, str]:
    try:
        settings = Settings(precision=precision)
        runner = get_engine(engine).prepare(Conversion(model, inputs), settings)
        return reference.compare(runner.run(inputs), precision), ""
    except (ExportError, UnsupportedCaseError, VerificationError) as error:
        return None, str(error)


@takes(
    model=MODULE,
    reference=MODULE | NONE,
    forms=a("a mapping of names to modules", Mapping) | NONE,
    engines=several(TEXT) | NONE,
    precisions=several(TEXT),
    threads=whole(1) | NONE,
    rounds=whole(1),
    progress=FUNCTION | NONE,
)
@leaves_untouched
def pick(  # noqa: PLR0913 - each is one axis of the choice
    model: nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    reference: nn.Module | None = None,
    forms: Mapping[str, nn.Module] | None = None,
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    threads: int | None = None,
    rounds: int = 15,
    progress: Progress | None = None,
) -> Pick:
    """Find the fastest engine for a net on this machine, and the form that is fastest there.

    Every form in every engine is first compared with the reference; only what agrees is measured,
    all of it in turns. A fused net is not faster everywhere: some engines fold batch norms
    themselves, and some have no fast kernel for the layer that the branches become. Give the net as
    trained among ``forms`` to see it.

    Args:
        model: The model to run, in eval mode.
        example_inputs: Real inputs, with the batch it will be used with.
        reference: The model as trained; ``None`` compares with ``model`` itself.
        forms: Other forms of the same net by name, in eval mode, which may be picked as well.
        engines: Names of engines; ``None`` is every one that is installed.
        precisions: ``"fp32"`` and ``"bf16"``; reduced precision is only picked if asked for.
        threads: CPU threads, or ``None`` for each engine's default.
        rounds: Rounds of the measurement.
        progress: As for :func:`reparam.benchmark`.

    Returns:
        The fastest case, what it was chosen from, and the format to export.

    Raises:
        InputError: No engine runs the model and agrees with the reference.
        MissingExtraError: An engine asked for by name is not installed.
        TrainingModeError: A model is in training mode.
    """
    for given in forms or {}:
        TEXT.check("a name in forms", given)
    models = {_MODEL: model, **(forms or {})}
    if _MODEL in (forms or {}):
        raise InputError(f"a form is called {_MODEL!r}, as the model itself is; give another name")
    trained = model if reference is None else reference
    rows = parity_table(
        {name: check_module(f"the form {name!r}", form) for name, form in models.items()},
        example_inputs,
        references=dict.fromkeys(models, trained),
        engines=engines,
        precisions=precisions,
    )
    good = [row.way for row in rows if row.ok]
    if not good:
        tried = "; ".join(f"{r.engine} {r.precision}: {r.why or r.parity}" for r in rows)
        raise InputError(f"no engine runs the model and agrees with the reference: {tried}")
    result = benchmark(
        {name: form for name, form in models.items() if any(name == row[0] for row in good)},
        example_inputs,
        engines=tuple(dict.fromkeys(engine for _, engine, _ in good)),
        precisions=tuple(p for p in PRECISIONS if any(p == row[2] for row in good)),
        threads=(threads,),
        rounds=rounds,
        progress=progress,
    )
    agreed = [m for m in result.measurements if m.case.way in good]
    best = max(agreed, key=lambda m: m.throughput)
    wanted = _WRITTEN_FOR.get(best.case.engine, best.case.engine)
    entry = next(f for f in formats() if f.engine == wanted and f.suffix != ".safetensors")
    return Pick(best, rows, result, entry.suffix, entry.backend)
