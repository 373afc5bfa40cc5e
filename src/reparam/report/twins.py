"""What branches brought to a net that was trained with them and without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reparam.report.charts import Bar, bar_chart
from reparam.report.numbers import percent, significant, wilson_interval

if TYPE_CHECKING:
    from reparam.report.results import TwinRecord, TwinsRecord

__all__ = ["twins_remarks", "twins_section"]


def twins_section(record: TwinsRecord) -> dict[str, Any]:
    """The accuracies as bars, what they say, and the losses epoch by epoch."""
    return {
        "remarks": twins_remarks(record),
        "chart": bar_chart(
            [_bar(twin) for twin in record.twins],
            unit="% correct",
            summary="Top-1 accuracy on the test images, with branches and without",
            maximum=100,
        ),
        "note": record.note,
        "rows": [
            {
                "label": twin.label,
                "role": twin.role,
                "cells": [
                    f"{twin.learning_rate:g}",
                    *(f"{loss:.2f}" for loss in twin.loss),
                ],
            }
            for twin in record.twins
        ],
        "epochs": range(1, 1 + max(len(twin.loss) for twin in record.twins)),
    }


def twins_remarks(record: TwinsRecord) -> list[str]:
    """The net with branches beside every other: points, or that these images tell no difference."""
    wide = next((twin for twin in record.twins if twin.role == "train"), None)
    what = f"{record.convolutions} convolutions once folded, trained on {record.images:,} images"
    remarks = [f"The same {what}."]
    if wide is None:
        return remarks
    others = (twin for twin in record.twins if twin is not wide)
    return remarks + [f"{wide.label} {_verdict(wide, other)}." for other in others]


def _verdict(wide: TwinRecord, other: TwinRecord) -> str:
    points = 100 * (wide.correct / wide.total - other.correct / other.total)
    (low, high), (least, most) = (
        wilson_interval(twin.correct, twin.total) for twin in (wide, other)
    )
    verb = "gained" if points >= 0 else "lost"
    against = other.label[:1].lower() + other.label[1:]
    told = f"{verb} {significant(abs(points))} points over {against}"
    if low > most or high < least:
        return told
    return f"{told}, which {wide.total} test images do not tell from none"


def _bar(twin: TwinRecord) -> Bar:
    low, high = wilson_interval(twin.correct, twin.total)
    return Bar(
        label=twin.label,
        detail=f"learning rate {twin.learning_rate:g}",
        role=twin.role,
        value=100 * twin.correct / twin.total,
        low=100 * low,
        high=100 * high,
        shown=percent(twin.correct / twin.total),
    )
