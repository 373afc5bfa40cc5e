"""What :func:`reparam.benchmark` found, as records that a page is drawn from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reparam._support.records import decode
from reparam.deploy.engines import engine_names, get_engine
from reparam.errors import InputError
from reparam.report.published import REPARAMETERIZED_FAMILIES, published
from reparam.report.results import (
    LatencyRecord,
    MemoryRecord,
    ModelRecord,
    Results,
    TimingRecord,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reparam.deploy.benchmarking import BenchmarkResult

SCHEMA = "reparam-benchmark/1"

BUSY = 0.5
"""A load average above this share of the cores disturbs timings."""

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_FORMS = ("train", "deploy")


def engine_label(engine: str, precision: str = "fp32") -> str:
    """How an engine is called on a page; single precision goes without saying.

    >>> engine_label("onnxruntime"), engine_label("openvino", "bf16")
    ('ONNX Runtime', 'OpenVINO bf16')
    """
    label = get_engine(engine).label if engine in engine_names() else engine
    return label if precision == "fp32" else f"{label} {precision}"


def timing_record(model: str, measured: Any) -> TimingRecord:
    """The rounds of one measurement, in milliseconds a call, under the model's key."""
    case = measured.case
    return TimingRecord(
        model=model,
        engine=engine_label(case.engine, case.precision),
        samples_ms=tuple(1e3 * seconds for seconds in measured.rounds),
    )


def environment_record(environment: Mapping[str, Any]) -> dict[str, str]:
    """Processor and versions, one line each."""
    flat = {key: value for key, value in environment.items() if not isinstance(value, dict)}
    flat |= environment.get("versions", {})
    if isinstance(size := flat.pop("memory_bytes", None), int):
        flat["memory"] = f"{size / 2**30:.0f} GiB"
    return {key.replace("_", " "): str(value) for key, value in flat.items() if value is not None}


def model_details(of: str, form: str = "", **counts: int) -> dict[str, Any]:
    """What a page needs to know of a model besides its times; kept in a benchmark's settings.

    Args:
        of: the model as it is called on the command line.
        form: ``"train"``, ``"deploy"``, or nothing for a model that has but one form.
        **counts: fields of :class:`~reparam.report.results.ModelRecord`, such as `parameters`.
    """
    known = published(of)
    label = known.label if known else of
    details: dict[str, Any] = {"of": of, "form": form, **counts}
    details["label"] = f"{label}, {form} form" if form else label
    if known:
        details |= {
            "family": known.family,
            "published_top1": known.top1,
            "published_in": known.source,
            "published_recipe": known.recipe,
            "published_longer": known.longer,
        }
    return details


def from_json(value: dict[str, Any], where: str) -> Results:
    """Read the JSON object of a stored benchmark.

    Raises:
        InputError: it is not what a benchmark stores.
    """
    from reparam.deploy.benchmarking import BenchmarkResult

    try:
        results = from_benchmark(BenchmarkResult.from_json(json.dumps(value)))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: this is not a stored benchmark ({error}); was this file written by another "
            "tool?"
        ) from error
    return decode(Results, asdict(results), where)


def from_benchmark(result: BenchmarkResult) -> Results:
    """Group the measurements that may be compared, and look up what is known of the models.

    The settings of the benchmark may hold ``models`` (see :func:`model_details`), ``memory`` (the
    objects of :class:`~reparam.report.results.MemoryRecord`), ``title``, ``created`` and
    ``command``; a benchmark that another program stored has none of them.

    Raises:
        InputError: a detail is of another kind than its record declares.
    """
    settings = result.settings
    described = settings.get("models", {})
    names = dict.fromkeys(m.case.model for m in result.measurements)
    title = "One model measured" if len(names) == 1 else f"{len(names)} models measured"
    return Results(
        title=str(settings.get("title", title)),
        created=str(settings.get("created", "")),
        command=str(settings.get("command", "")),
        models=tuple(_model(name, described.get(name) or model_details(name)) for name in names),
        benchmarks=_groups(result),
        memory=tuple(decode(MemoryRecord, m, "memory") for m in settings.get("memory", ())),
        environment=environment_record(result.environment),
    )


def _model(name: str, details: Mapping[str, Any]) -> ModelRecord:
    family, form = details.get("family", ""), details.get("form", "")
    if family and family not in REPARAMETERIZED_FAMILIES:
        role = "comparator"
    else:
        role = "train" if form == "train" else "deploy"
    return decode(ModelRecord, {"label": name, **details, "key": name, "role": role}, name)


def _groups(result: BenchmarkResult) -> tuple[LatencyRecord, ...]:
    """Cases of one batch and one number of threads: what a reader may compare."""
    default = int(result.environment.get("torch_threads", 1))
    keys = dict.fromkeys((m.case.batch, m.case.threads) for m in result.measurements)
    return tuple(_group(result, batch, threads, default) for batch, threads in keys)


def _group(
    result: BenchmarkResult, batch: int, threads: int | None, default_threads: int
) -> LatencyRecord:
    same = (batch, threads)
    measured = [m for m in result.measurements if (m.case.batch, m.case.threads) == same]
    skipped = [s for s in result.skipped if (s.case.batch, s.case.threads) == same]
    shape = (batch, *result.shapes[0]) if result.shapes else (batch,)
    what = "image" if len(shape) == 4 else "input"
    size = f" of {'×'.join(map(str, shape[-2:]))} pixels" if len(shape) == 4 else ""
    title = f"One {what}{size} a call" if batch == 1 else f"{batch} {what}s{size} a call"
    precisions = dict.fromkeys(m.case.precision for m in measured)
    return LatencyRecord(
        title=title,
        input_shape=shape,
        threads=threads or default_threads,
        rows=tuple(timing_record(m.case.model, m) for m in measured),
        dtype=" and ".join(_DTYPES.get(p, p) for p in precisions),
        note=" ".join(filter(None, (_not_measured(skipped), _busy(result)))),
    )


def _busy(result: BenchmarkResult) -> str:
    """What a reader must know of the other work that the machine did."""
    load, cores = result.settings.get("load_before"), result.environment.get("cores")
    if not isinstance(load, int | float) or not isinstance(cores, int) or load <= BUSY * cores:
        return ""
    return (
        f"The machine was busy when the run began (load {load:.1f} on {cores} cores): times are "
        "longer than they need be, most of all where several threads wait for one another."
    )


def _not_measured(skipped: list[Any]) -> str:
    """The reasons, each once, with what they keep from being measured."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in skipped:
        label = engine_label(entry.case.engine, entry.case.precision)
        reasons.setdefault((label, entry.why), []).append(entry.case.model)
    told = [
        f"{', '.join(models) if len(models) < 3 else f'{len(models)} models'} in {label} ({why})"
        for (label, why), models in reasons.items()
    ]
    return f"Not measured: {'; '.join(told)}." if told else ""
