"""Accuracy against latency: published accuracy, and latency measured in the run at hand.

Which net to compare with which is decided by the accuracies alone, before any time is looked at:
every other net meets, of each re-parameterized family, the least accurate member that is at least
as accurate and not far better. Who wins is read off the ratios of the rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam._support.statistics import Quartiles, quartiles
from reparam.report.paired import Paired, paired
from reparam.report.published import INPUT_SIZE, REPARAMETERIZED_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.report.results import LatencyRecord, ModelRecord, Results

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

    def twice_as_fast(self, engine: str) -> tuple[dict[str, list[Duel]], dict[str, Duel]]:
        """Whom "half the latency at equal accuracy" holds against, and the nearest to it elsewhere.

        Returns:
            The comparisons that show it, and the best one with each of the other nets.
        """
        by_other: dict[str, list[Duel]] = {}
        for duel in self.duels_in(engine):
            by_other.setdefault(short_label(duel.other), []).append(duel)
        held = {other: list(filter(_halves, met)) for other, met in by_other.items()}
        nearest = {
            other: max(met, key=lambda duel: duel.result.factor)
            for other, met in by_other.items()
            if not held[other]
        }
        return {other: met for other, met in held.items() if met}, nearest

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


def _halves(duel: Duel) -> bool:
    return duel.result.clear and duel.result.low >= _HALF
