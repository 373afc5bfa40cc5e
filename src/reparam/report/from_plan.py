"""What :func:`reparam.plan` found, as records that a page is drawn from."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reparam.report.results import (
    CostRecord,
    PlaceRecord,
    PlanRecord,
    RefusalRecord,
    RegionRecord,
    Results,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reparam.fusing import Plan

__all__ = ["from_plan", "plan_record"]


def from_plan(
    plan: Plan[Any],
    *,
    model: str,
    created: str = "",
    command: str = "",
    environment: Mapping[str, str] | None = None,
) -> Results:
    """Put on record what folds in a net, what stays and why.

    Args:
        plan: What :func:`reparam.plan` returned.
        model: What to call the net.
        created: When, in words.
        command: What made it, to repeat it.
        environment: What it ran on, a line each.

    >>> from reparam.report import render
    >>> page = render(from_plan(plan, model="mine"), "plan.html")  # doctest: +SKIP

    """
    return Results(
        title=f"What folds in {model}",
        created=created,
        models=(),
        command=command,
        environment=dict(environment or {}),
        plan=plan_record(model, plan),
    )


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
        column=tuple(PlaceRecord(**asdict(place)) for place in plan.column()),
    )
