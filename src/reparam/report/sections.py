"""Sections of the page: what is drawn in each, and in which order.

A new section, chart or table is a generator here or in a module beside, under ``@section``: from
the results to a :class:`Part` for each record that there is something to draw of, and none where
there is nothing. ``assets/section.html.j2`` shows its charts and tables; words of its own are in a
template that is called as the section is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reparam.report.marks import Chart
from reparam.report.results import Results
from reparam.report.scatter import Scatter
from reparam.report.tables import Table

_ORDER = (
    "block", "accuracy", "training", "twins", "tradeoff", "engines", "latency", "int8", "pruning",
    "memory", "plan", "verification", "models", "difference",
)  # fmt: skip
"""Of the page, from top to bottom; sections that are not named come last."""


@dataclass(frozen=True)
class Part:
    """What is shown of one record: charts and tables, and whatever else its words need."""

    record: Any = None
    charts: Mapping[str, Chart | Scatter] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A part of the page; `anchor` is its id, and the name of its template if it has one."""

    anchor: str
    title: str
    parts: tuple[Part, ...]


_Maker = Callable[[Results], Iterable[Part]]
_MAKERS: dict[tuple[str, str], _Maker] = {}


def section(anchor: str, title: str) -> Callable[[_Maker], _Maker]:
    """Put what a function makes of the results on the page."""

    def keep(maker: _Maker) -> _Maker:
        _MAKERS[anchor, title] = maker
        return maker

    return keep


def sections(results: Results) -> list[Section]:
    """All sections that there is something to show in."""
    made = (Section(*named, tuple(maker(results))) for named, maker in _MAKERS.items())
    return sorted((each for each in made if each.parts), key=_place)


def _place(made: Section) -> int:
    return _ORDER.index(made.anchor) if made.anchor in _ORDER else len(_ORDER)


def tables(made: Iterable[Section]) -> Iterator[tuple[str, Table]]:
    """Every table of some sections, with the section's name."""
    for each in made:
        for part in each.parts:
            for table in part.tables.values():
                yield each.anchor, table
