"""What the library returns, put on record: the results that a page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from reparam.errors import InputError
from reparam.lab.pruning.targets import MacsTarget
from reparam.report.benchmarks import engine_label
from reparam.report.compressed import PruningRecord, QuantizationRecord
from reparam.report.differences import DifferenceRecord, SideRecord
from reparam.report.results import CostRecord, PlanRecord, RefusalRecord, RegionRecord, Results

if TYPE_CHECKING:
    from reparam.diffing import Difference
    from reparam.diffing.regions import Region
    from reparam.fusing import Plan
    from reparam.lab.pruning import PruneResult
    from reparam.lab.pruning.targets import Target
    from reparam.lab.quantizing import QuantizeResult

Judged = tuple[int, int, int]
"""Samples right before, samples right after, and samples."""


class Made(TypedDict, total=False):
    """How a result came to be: when, by which command, and on what, a line each."""

    created: str
    command: str
    environment: Mapping[str, str]


def _results(title: str, made: Made, **records: Any) -> Results:
    environment = dict(made.get("environment") or {})
    return Results(
        title=title,
        models=(),
        created=made.get("created", ""),
        command=made.get("command", ""),
        environment=environment,
        **records,
    )


def from_plan(plan: Plan[Any], *, model: str, **made: Unpack[Made]) -> Results:
    """Put on record what folds in a net, what stays and why.

    Args:
        plan: What :func:`reparam.plan` returned.
        model: What to call the net.
        **made: `created`, `command` and `environment`: when, by which command, and on what.

    >>> from reparam.report import render
    >>> page = render(from_plan(plan, model="mine"), "plan.html")  # doctest: +SKIP

    """
    return _results(f"What folds in {model}", made, plan=plan_record(model, plan))


def plan_record(model: str, plan: Plan[Any]) -> PlanRecord:
    """The regions and refusals of a plan."""
    return PlanRecord(
        model=model,
        regions=tuple(
            RegionRecord(
                where=region.where,
                what=region.what,
                into=region.into,
                before=CostRecord(region.layers_before, region.stored_before, region.macs_before),
                after=CostRecord(1, region.stored_after, region.macs_after),
            )
            for region in plan.regions
        ),
        refusals=tuple(RefusalRecord(r.where, r.what, r.why) for r in plan.refusals),
        column=tuple(plan.column()),
    )


def from_diff(found: Difference, *, first: str, second: str, **made: Unpack[Made]) -> Results:
    """Put on record whether two networks are the same function, and where they part.

    Args:
        found: What :func:`reparam.diff` returned.
        first: What to call the first network.
        second: What to call the second.
        **made: `created`, `command` and `environment`: when, by which command, and on what.

    >>> from reparam.report import render
    >>> results = from_diff(found, first="trained", second="exported")  # doctest: +SKIP
    >>> page = render(results, "diff.html")  # doctest: +SKIP

    """
    values = [found.detail.get(side) for side in ("left", "right")]
    finite = found.effect is not None and found.effect < float("inf")
    record = DifferenceRecord(
        first=first,
        second=second,
        outcome=found.outcome,
        numbers=found.numbers,
        worst=found.worst if found.outcome == "equal" else 0.0,
        proven=found.proven,
        shapes=found.shapes,
        what=found.what or "",
        parts=found.parting,
        index=tuple(found.detail.get("index", ())),
        effect=found.effect if finite else None,
        sides=tuple(
            _side(region, value) for region, value in zip(found.regions or (), values, strict=False)
        ),
    )
    return _results(f"{first} and {second}", made, differences=(record,))


def _side(region: Region, value: object) -> SideRecord:
    told = f"{value:.9g}" if isinstance(value, float) else ""
    numbers = region.numbers
    if numbers is None:
        return SideRecord(region.reads, region.operators, region.computes, value=told)
    rows = tuple(tuple(f"{number:.4g}" for number in row) for row in numbers.rows)
    return SideRecord(region.reads, region.operators, region.computes, rows, numbers.at,
                      numbers.starts, numbers.plane, told)  # fmt: skip


def from_quantize(result: QuantizeResult, *, model: str = "", **made: Unpack[Made]) -> Results:
    """Put the verdict, the remedies and the diagnosis on record.

    Args:
        result: What :func:`reparam.quantize` returned.
        model: What to call the net; by default what its file says that it was made from.
        **made: `created`, `command` and `environment`: when, by which command, and on what.

    >>> from reparam.report import render
    >>> page = render(from_quantize(result), "int8.html")  # doctest: +SKIP
    """
    record = quantization_record(result, model)
    return _results(f"{record.model} in eight bits", made, quantizations=(record,))


def quantization_record(result: QuantizeResult, model: str = "") -> QuantizationRecord:
    """The result of one quantization, with counts in place of shares."""
    score, diagnosis = result.score, result.diagnosis

    def counted(share: float | None) -> int | None:
        return None if share is None else round(share * score.samples)

    return QuantizationRecord(
        model=model or result.metadata.get("reparam.source", "The net"),
        engine=engine_label(result.engine),
        format=result.format,
        file=result.path.name,
        judged_on=score.on,
        samples=score.samples,
        correct_float=counted(score.float_accuracy),
        correct=counted(score.accuracy),
        agree=counted(score.agreement),
        output_db=score.output_db,
        float_bytes=result.float_bytes,
        size_bytes=result.size_bytes,
        quantized=result.quantized,
        kept_float=result.kept_float,
        equalised=result.equalised,
        bias_corrected=result.bias_corrected,
        calibration=result.calibration,
        layers=diagnosis.layers if diagnosis else (),
        simulated_db=diagnosis.output_db if diagnosis else None,
        simulated_on=diagnosis.samples if diagnosis else None,
    )


def from_prune(
    result: PruneResult,
    *,
    model: str = "",
    judged: Judged | None = None,
    judged_on: str = "",
    file: str = "",
    **made: Unpack[Made],
) -> Results:
    """Put the widths, the savings and what they cost on record.

    Args:
        result: What :func:`reparam.prune` returned.
        model: What to call the net; by default its class.
        judged: Samples that the net put in their class before and after, and how many there were;
            None if nobody looked, which the page says.
        judged_on: What those samples were.
        file: Name of the file that holds the smaller net.
        **made: `created`, `command` and `environment`: when, by which command, and on what.

    Raises:
        InputError: More samples were right than there were.

    >>> from reparam.report import render
    >>> page = render(from_prune(result), "pruned.html")  # doctest: +SKIP
    """
    if judged and not 0 <= max(judged[:2]) <= judged[2]:
        raise InputError(
            f"judged is {judged}: samples right before, right after, and all samples, "
            "which cannot be fewer"
        )
    before, after, samples = judged or (None, None, None)
    record = PruningRecord(
        model=model or type(result.model).__name__,
        target=str(result.target),
        importance=result.importance,
        multiply_adds_before=result.multiply_adds[0],
        multiply_adds_after=result.multiply_adds[1],
        parameters_before=result.parameters[0],
        parameters_after=result.parameters[1],
        layers=result.layers,
        groups=result.groups,
        kept=result.kept,
        solved=result.solved,
        latency=result.latency,
        trials=result.trials,
        judged_on=judged_on,
        samples=samples,
        correct_before=before,
        correct_after=after,
        file=file,
        **_asked_for(result.target),
    )
    return _results(f"{record.model}, pruned to {record.target}", made, prunings=(record,))


def _asked_for(target: Target) -> dict[str, float]:
    """The target as a number."""
    if isinstance(target, MacsTarget):
        return {"macs_share": target.share}
    if target.seconds is not None:
        return {"latency_ms": 1e3 * target.seconds}
    return {} if target.ratio is None else {"latency_share": target.ratio}
