"""The middle of a sample, and how far it spreads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Quartiles:
    """First quartile, median and third quartile, in the unit of what was measured."""

    q1: float
    median: float
    q3: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of one or more values (linear interpolation, both ends included).

    >>> quartiles([3.0, 1.0, 2.0])
    Quartiles(q1=1.5, median=2.0, q3=2.5)
    """
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(low, middle, high)
