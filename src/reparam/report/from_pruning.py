"""What :func:`reparam.prune` did, as records that a page is drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.errors import InputError
from reparam.lab.pruning.targets import MacsTarget
from reparam.report.compressed import PruningRecord
from reparam.report.results import Results

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reparam.lab.pruning import PruneResult
    from reparam.lab.pruning.targets import Target

__all__ = ["from_prune", "pruning_record"]

Judged = tuple[int, int, int]
"""Samples right before, samples right after, and samples."""


def from_prune(  # noqa: PLR0913 - what the result itself does not know
    result: PruneResult,
    *,
    model: str = "",
    judged: Judged | None = None,
    judged_on: str = "",
    file: str = "",
    created: str = "",
    command: str = "",
    environment: Mapping[str, str] | None = None,
) -> Results:
    """Put the widths, the savings and what they cost on record.

    Args:
        result: What :func:`reparam.prune` returned.
        model: What to call the net; by default its class.
        judged: Samples that the net put in their class before and after, and how many there were;
            None if nobody looked, which the page says.
        judged_on: What those samples were.
        file: Name of the file that holds the smaller net.
        created: When, in words.
        command: What made it, to repeat it.
        environment: What it ran on, a line each.

    Raises:
        InputError: More samples were right than there were.

    >>> from reparam.report import render
    >>> page = render(from_prune(result), "pruned.html")  # doctest: +SKIP
    """
    named = model or type(result.model).__name__
    record = pruning_record(result, named, judged=judged, judged_on=judged_on, file=file)
    return Results(
        title=f"{named}, pruned to {result.target}",
        created=created,
        models=(),
        command=command,
        prunings=(record,),
        environment=dict(environment or {}),
    )


def pruning_record(
    result: PruneResult,
    model: str,
    *,
    judged: Judged | None = None,
    judged_on: str = "",
    file: str = "",
) -> PruningRecord:
    """The result of one pruning, without the net.

    Raises:
        InputError: More samples were right than there were.
    """
    before, after, samples = judged or (None, None, None)
    if judged and not 0 <= max(judged[:2]) <= judged[2]:
        raise InputError(
            f"judged is {judged}: samples right before, right after, and all samples, "
            "which cannot be fewer"
        )
    return PruningRecord(
        model=model,
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


def _asked_for(target: Target) -> dict[str, float]:
    """The target as a number."""
    if isinstance(target, MacsTarget):
        return {"macs_share": target.share}
    if target.seconds is not None:
        return {"latency_ms": 1e3 * target.seconds}
    return {} if target.ratio is None else {"latency_share": target.ratio}
