"""Accuracy against latency: published accuracy, and latency measured in the run at hand.

Which net to compare with which is decided by the accuracies alone, before any time is looked at:
every other net meets, of each re-parameterized family, the least accurate member that is at least
as accurate and not far better. Who wins is read off the ratios of the rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam._support.statistics import Quartiles, quartiles
from reparam.report.numbers import ratio
from reparam.report.paired import Paired, paired
from reparam.report.published import INPUT_SIZE, REPARAMETERIZED_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.report.results import LatencyRecord, ModelRecord, Results

__all__ = [
    "FAR_BETTER",
    "Duel",
    "Point",
    "Tradeoff",
    "form_duels",
    "headline_clause",
    "in_engine",
    "pareto_front",
    "ratio_cell",
    "short_label",
    "tradeoffs",
    "verdict",
]

_HALF = 2.0
"""The paper's claim of half the latency at equal accuracy."""

FAR_BETTER = 2.5
"""Points of top-1 above which two nets are no longer called equally accurate."""


@dataclass(frozen=True)
class Point:
    """A model in one engine: published top-1 in percent, and milliseconds a call."""

    model: ModelRecord
    top1: float
    latency: Quartiles
    front: bool = False


@dataclass(frozen=True)
class Duel:
    """Two models in one engine; the comparison is of `mine` with `other`."""

    mine: ModelRecord
    other: ModelRecord
    engine: str
    result: Paired


@dataclass(frozen=True)
class Tradeoff:
    """All models with a published accuracy that one run timed on the same input."""

    group: LatencyRecord
    engines: tuple[str, ...]
    points: dict[str, tuple[Point, ...]]
    duels: tuple[Duel, ...]

    @property
    def pairs(self) -> tuple[tuple[ModelRecord, ModelRecord], ...]:
        """Re-parameterized net and the net it meets, each pair once."""
        return tuple({(d.mine.key, d.other.key): (d.mine, d.other) for d in self.duels}.values())

    def duels_in(self, engine: str) -> tuple[Duel, ...]:
        """The comparisons in one engine."""
        return tuple(duel for duel in self.duels if duel.engine == engine)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the accuracies are published."""
        models = (point.model for points in self.points.values() for point in points)
        return tuple(dict.fromkeys(model.published_in for model in models))


def in_engine(engine: str) -> str:
    """The name of an engine after "in".

    >>> in_engine("eager"), in_engine("eager bf16"), in_engine("OpenVINO")
    ('eager PyTorch', 'eager PyTorch bf16', 'OpenVINO')
    """
    return engine.replace("eager", "eager PyTorch")


def short_label(model: ModelRecord) -> str:
    """A model's name without its form: ``RepVGG-A0, deploy form`` is RepVGG-A0."""
    return model.label.removesuffix(f", {model.form} form") if model.form else model.label


def tradeoffs(results: Results) -> list[Tradeoff]:
    """One for each group of timings in which two or more models have a published accuracy."""
    found = (_tradeoff(results, group) for group in results.benchmarks)
    return [each for each in found if each is not None]


def _tradeoff(results: Results, group: LatencyRecord) -> Tradeoff | None:
    # The accuracies are of images of one size; at another size they say nothing.
    if group.input_shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
        return None
    models = [m for m in (results.model(row.model) for row in group.rows) if _is_comparable(m)]
    models = list({model.key: model for model in models}.values())
    times = {(row.model, row.engine): row.samples_ms for row in group.rows}
    engines = dict.fromkeys(row.engine for row in group.rows)
    points = {engine: pareto_front(_points(models, times, engine)) for engine in engines}
    drawn = tuple(engine for engine in engines if len(points[engine]) > 1)
    if not drawn:
        return None
    duels = [
        Duel(mine, other, engine, paired(times[other.key, engine], times[mine.key, engine]))
        for engine in drawn
        for mine, other in _pairs(models)
        if {(mine.key, engine), (other.key, engine)} <= times.keys()
    ]
    return Tradeoff(group, drawn, {engine: points[engine] for engine in drawn}, tuple(duels))


def _is_comparable(model: ModelRecord) -> bool:
    return model.published_top1 is not None and model.form != "train"


def _points(
    models: Sequence[ModelRecord], times: dict[tuple[str, str], tuple[float, ...]], engine: str
) -> list[Point]:
    return [
        Point(model, model.published_top1, quartiles(times[model.key, engine]))
        for model in models
        if model.published_top1 is not None and (model.key, engine) in times
    ]


def pareto_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The same points by latency, those marked that no other beats in both respects."""
    marked = []
    best = float("-inf")
    for point in sorted(points, key=lambda p: (p.latency.median, -p.top1)):
        marked.append(Point(point.model, point.top1, point.latency, front=point.top1 > best))
        best = max(best, point.top1)
    return tuple(marked)


def _pairs(models: Sequence[ModelRecord]) -> list[tuple[ModelRecord, ModelRecord]]:
    families: dict[str, list[ModelRecord]] = {}
    for model in sorted(models, key=_top1):
        if model.family in REPARAMETERIZED_FAMILIES:
            families.setdefault(model.family, []).append(model)
    return [
        (mine, other)
        for other in sorted(models, key=_top1)
        if other.family not in REPARAMETERIZED_FAMILIES
        for family in families.values()
        if (mine := _equal(family, other)) is not None
    ]


def _equal(family: Sequence[ModelRecord], other: ModelRecord) -> ModelRecord | None:
    """The least accurate of a family that equals the other net, if one does."""
    least = next((model for model in family if _top1(model) >= _top1(other)), None)
    if least is None or _top1(least) > _top1(other) + FAR_BETTER:
        return None
    return least


def _top1(model: ModelRecord) -> float:
    return model.published_top1 or 0.0


def form_duels(results: Results, group: LatencyRecord) -> list[Duel]:
    """The deploy form of each model beside its train form, engine by engine."""
    forms = {}
    for row in group.rows:
        model = results.model(row.model)
        forms[model.of, model.form, row.engine] = (model, row.samples_ms)
    duels = []
    for (of, form, engine), (mine, times) in forms.items():
        train = forms.get((of, "train", engine))
        if form == "deploy" and train is not None:
            duels.append(Duel(mine, train[0], engine, paired(train[1], times)))
    return duels


def verdict(compared: Tradeoff, engine: str) -> str:
    """What the pairs say in one engine, in plain words that are computed from the ratios."""
    duels = compared.duels_in(engine)
    if not duels:
        return f"In {in_engine(engine)} no two nets can be compared at equal published accuracy."
    wins = sum(duel.result.wins for duel in duels)
    loses = sum(duel.result.loses for duel in duels)
    counts = (("win", wins), ("lose", loses), ("are level in", len(duels) - wins - loses))
    told = ", ".join(f"{verb} {count}" for verb, count in counts if count)
    pairs = f"{len(duels)} pair{'' if len(duels) == 1 else 's'}"
    return f"In {in_engine(engine)} re-parameterized nets, in {pairs}, {told}. {_claim(duels)}"


def _claim(duels: Sequence[Duel]) -> str:
    """Against whom "half the latency at equal accuracy" holds here, and against whom not."""
    by_other: dict[str, list[Duel]] = {}
    for duel in duels:
        by_other.setdefault(short_label(duel.other), []).append(duel)
    twice = {
        other: held for other, met in by_other.items() if (held := [d for d in met if _halves(d)])
    }
    never = [
        f"{other} (nearest: {_score(max(met, key=lambda d: d.result.factor))})"
        for other, met in by_other.items()
        if other not in twice
    ]
    claim = "Half the latency at equal or better accuracy"
    if not twice:
        return f"{claim} holds against none: {', '.join(never)}."
    named = [f"{other} ({', '.join(map(_score, held))})" for other, held in twice.items()]
    against = f"{claim} holds against {', '.join(named)}"
    return f"{against}; not against {', '.join(never)}." if never else f"{against}."


def _halves(duel: Duel) -> bool:
    return duel.result.clear and duel.result.low >= _HALF


def _score(duel: Duel) -> str:
    return f"{short_label(duel.mine)} {duel.result.factor:.2f}×"


def headline_clause(compared: Tradeoff) -> list[tuple[str, bool]]:
    """The one sentence of a page that is about the trade-off: pieces, and whether they stand out.

    >>> from reparam.report.results import LatencyRecord
    >>> headline_clause(Tradeoff(LatencyRecord("", (1,), 1, ()), ("eager",), {}, ()))
    [('Accuracy against latency, measured on this machine.', False)]
    """
    if not compared.duels:
        return [("Accuracy against latency, measured on this machine.", False)]
    lead = "At equal or better published accuracy, re-parameterized nets are clearly faster in "
    pieces = [(lead, False)]
    # Reduced precision has its place below; one sentence cannot hold everything.
    full = [e for e in compared.engines if not e.endswith((" bf16", " int8"))]
    engines = full or list(compared.engines)
    for index, engine in enumerate(engines):
        duels = compared.duels_in(engine)
        wins = sum(duel.result.wins for duel in duels)
        if index:
            pieces.append((" and " if index == len(engines) - 1 else ", ", False))
        pieces.append((f"{wins} of {len(duels)}", True))
        pieces.append((f"{' pairs' if index == 0 else ''} in {in_engine(engine)}", False))
    pieces.append((".", False))
    return pieces


def ratio_cell(result: Paired) -> str:
    """A ratio as a cell of a table: how many times faster, with its quartiles."""
    return f"{ratio(result.factor)} ({result.low:.2f} to {result.high:.2f})"
