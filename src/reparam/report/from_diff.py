"""What :func:`reparam.diff` found, as records that a page is drawn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.report.differences import DifferenceRecord, SideRecord
from reparam.report.results import Results

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reparam.diffing import Difference
    from reparam.diffing.regions import Region

__all__ = ["from_diff"]


def from_diff(
    found: Difference,
    *,
    first: str,
    second: str,
    created: str = "",
    command: str = "",
    environment: Mapping[str, str] | None = None,
) -> Results:
    """Put on record whether two networks are the same function, and where they part.

    Args:
        found: What :func:`reparam.diff` returned.
        first: What to call the first network.
        second: What to call the second.
        created: When, in words.
        command: What made it, to repeat it.
        environment: What it ran on, a line each.

    >>> from reparam.report import render
    >>> results = from_diff(found, first="trained", second="exported")  # doctest: +SKIP
    >>> page = render(results, "diff.html")  # doctest: +SKIP

    """
    values = [found.detail.get(side) for side in ("left", "right")]
    record = DifferenceRecord(
        first=first,
        second=second,
        outcome=found.outcome,
        numbers=found.numbers,
        worst=found.worst if found.outcome == "equal" else 0.0,
        proven=found.proven,
        shapes=found.shapes,
        what=found.what or "",
        parts="" if found.what is None else found.parting,
        index=tuple(found.detail.get("index", ())),
        effect=_finite(found.effect),
        sides=tuple(
            _side(region, value) for region, value in zip(found.regions or (), values, strict=False)
        ),
    )
    return Results(
        title=f"{first} and {second}",
        created=created,
        models=(),
        command=command,
        environment=dict(environment or {}),
        differences=(record,),
    )


def _side(region: Region, value: object) -> SideRecord:
    told = f"{value:.9g}" if isinstance(value, float) else ""
    numbers = region.numbers
    if numbers is None:
        return SideRecord(region.reads, region.operators, region.computes, value=told)
    rows = tuple(tuple(f"{number:.4g}" for number in row) for row in numbers.rows)
    return SideRecord(region.reads, region.operators, region.computes, rows, numbers.at,
                      numbers.starts, numbers.plane, told)  # fmt: skip


def _finite(effect: float | None) -> float | None:
    return effect if effect is not None and effect < float("inf") else None
