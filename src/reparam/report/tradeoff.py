"""Accuracy against latency: published accuracy, and latency measured in the run at hand.

Which net to compare with which is decided by the accuracies alone, before any time is looked at:
every net with shortcuts or branches meets the least accurate single path that is at least as
accurate. Who wins is read off the ratios of the rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report.numbers import Quartiles, quartiles, ratio
from reparam.report.paired import Paired, paired
from reparam.report.published import INPUT_SIZE, SINGLE_PATH_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.report.results import LatencyRecord, ModelRecord, Results

__all__ = [
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
        """Single path and the net it meets, each pair once."""
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
    single = [model for model in models if model.family in SINGLE_PATH_FAMILIES]
    pairs = []
    for other in models:
        able = [m for m in single if (m.published_top1 or 0) >= (other.published_top1 or 0)]
        if other not in single and able:
            pairs.append((min(able, key=lambda m: m.published_top1 or 0), other))
    return pairs


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
    sides = (
        ("wins", [d for d in duels if d.result.wins]),
        ("loses", [d for d in duels if d.result.loses]),
        ("is level in", [d for d in duels if not d.result.clear]),
    )
    total = len(duels)
    told = [
        f"{verb} {_of_all(len(part), total)}: {'; '.join(map(_score, part))}"
        for verb, part in sides
        if part
    ]
    return f"In {in_engine(engine)} single path {'. It '.join(told)}. {_claim(duels)}"


def _of_all(number: int, total: int) -> str:
    if number == total:
        return "the one pair" if total == 1 else f"all {total} pairs"
    return f"{number} of {total} pairs"


def _score(duel: Duel) -> str:
    mine, other = short_label(duel.mine), short_label(duel.other)
    if duel.result.same:
        return f"{mine} is as fast as {other}"
    if not duel.result.clear:
        return f"neither {mine} nor {other} was faster in most rounds"
    return f"{mine} is {duel.result} than {other}"


def _claim(duels: Sequence[Duel]) -> str:
    """Does "half the latency at equal accuracy" hold here?"""
    held = [d for d in duels if d.result.clear and d.result.low >= _HALF]
    if not held:
        best = max(duels, key=lambda d: d.result.factor)
        return (
            "Half the latency at equal accuracy holds for no pair"
            f" (nearest: {short_label(best.mine)} takes {1 / best.result.factor:.2f} of the time"
            f" of {short_label(best.other)})."
        )
    named = ", ".join(f"{short_label(d.mine)} against {short_label(d.other)}" for d in held)
    every = len(held) == len(duels)
    return f"Half the latency at equal accuracy holds for {'every pair' if every else named}."


def headline_clause(compared: Tradeoff) -> list[tuple[str, bool]]:
    """The one sentence of a page that is about the trade-off: pieces, and whether they stand out.

    >>> from reparam.report.results import LatencyRecord
    >>> headline_clause(Tradeoff(LatencyRecord("", (1,), 1, ()), ("eager",), {}, ()))
    [('Accuracy against latency, measured on this machine.', False)]
    """
    if not compared.duels:
        return [("Accuracy against latency, measured on this machine.", False)]
    pieces = [("At equal or better published accuracy, single path is clearly faster in ", False)]
    # Reduced precision has its place below; one sentence cannot hold everything.
    engines = [e for e in compared.engines if " bf16" not in e] or list(compared.engines)
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
