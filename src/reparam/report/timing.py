"""What the page shows of times: nets in each engine, and accuracy against latency."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from reparam._support.statistics import quartiles
from reparam.report.marks import Chart, Row, bar, bar_chart, dot_chart
from reparam.report.numbers import count, milliseconds, of, ratio, significant
from reparam.report.paired import paired
from reparam.report.published import REPARAMETERIZED_FAMILIES
from reparam.report.scatter import Dot, Scatter
from reparam.report.sections import Part, section
from reparam.report.tables import Cell, Column, Line, Table
from reparam.report.tradeoff import Duel, form_duels, in_engine, short_label, tradeoffs

if TYPE_CHECKING:
    from reparam.report.results import LatencyRecord, Results
    from reparam.report.tradeoff import Point, Tradeoff

_ONE_SCALE = 6.0
"""Engines whose longest times differ by more than this are drawn apart."""

_LEAST_MEMBER = "the least accurate member of each family is that is at least as accurate"


def fastest_engine(group: LatencyRecord, model: str) -> str:
    """The engine with the least median time for one model."""
    rows = [row for row in group.rows if row.model == model]
    return min(rows, key=lambda row: quartiles(row.samples_ms).median).engine


def on_one_scale(group: LatencyRecord) -> list[list[str]]:
    """The engines of a group, put together as far as one axis shows the times of all.

    On the axis of an engine that takes ten times as long, nobody can tell the times of a fast one
    apart.
    """
    engines = _engines(group)
    longest = {
        engine: max(quartiles(r.samples_ms).median for r in group.rows if r.engine == engine)
        for engine in engines
    }
    together: list[list[str]] = []
    for engine in sorted(engines, key=longest.__getitem__):
        if together and longest[engine] <= _ONE_SCALE * longest[together[-1][0]]:
            together[-1].append(engine)
        else:
            together.append([engine])
    return [[engine for engine in engines if engine in each] for each in together]


def against_others(results: Results, group: LatencyRecord) -> list[Duel]:
    """The deploy form beside the train form and the comparator, engine by engine."""
    roles = {model.role: model for model in (results.model(row.model) for row in group.rows)}
    times = {(row.model, row.engine): row.samples_ms for row in group.rows}
    mine = roles.get("deploy")
    return [
        Duel(mine, its, engine, paired(times[its.key, engine], times[mine.key, engine]))
        for engine in _engines(group)
        for its in (roles.get("train"), roles.get("comparator"))
        if mine and its and {(mine.key, engine), (its.key, engine)} <= times.keys()
    ]


def _engines(group: LatencyRecord) -> list[str]:
    return list(dict.fromkeys(row.engine for row in group.rows))


@section("latency", "Latency")
def _latency(results: Results) -> Iterable[Part]:
    for group in results.latency:
        if group.rows:
            charts = {
                "+".join(engines): _bars(results, group, engines) for engines in on_one_scale(group)
            }
            duels = against_others(results, group)
            told = [(in_engine(d.engine), d.other.label, d, "") for d in duels]
            name = f"Deploy form against others, {group.title}"
            faster = _ratios(name, "the deploy form is than each other", "Engine", told)
            yield Part(group, charts, faster | _numbers(results, group))


def _bars(results: Results, group: LatencyRecord, engines: Sequence[str]) -> Chart:
    rows = [row for row in group.rows if row.engine in engines]
    bars = []
    for row in sorted(rows, key=lambda row: engines.index(row.engine)):
        model, time = results.model(row.model), quartiles(row.samples_ms)
        marks = bar(time.median, interval=(time.q1, time.q3), solid=row.engine == "eager")
        bars.append(Row(model.label, marks, milliseconds(time.median), row.engine, model.role))
    summary = f"Latency, {group.title}, {' and '.join(engines)}"
    return bar_chart(bars, unit="ms a call", summary=summary)


@section("engines", "Engines compared")
def _engine_parts(results: Results) -> Iterable[Part]:
    for group in results.benchmarks:
        if group.rows:
            charts = {
                "+".join(engines): _dots(results, group, engines)
                if len(engines) > 1
                else _bars(results, group, engines)
                for engines in on_one_scale(group)
            }
            told = [
                (in_engine(d.engine), short_label(d.mine), d, "")
                for d in form_duels(results, group)
            ]
            name = f"Deploy over train form, {group.title}"
            forms = _ratios(name, "the deploy form is than the train form", "Engine", told)
            tables = _winners(group) | forms | _numbers(results, group)
            yield Part(group, charts, tables, {"several": len(_engines(group)) > 1})


def _dots(results: Results, group: LatencyRecord, engines: Sequence[str]) -> Chart:
    """One line a model with a mark for each engine."""
    timed: dict[str, dict[str, float]] = {}
    for row in group.rows:
        if row.engine in engines:
            timed.setdefault(row.model, {})[row.engine] = quartiles(row.samples_ms).median
    models = {key: results.model(key) for key in timed}
    rows = [(models[key].label, models[key].role, values) for key, values in timed.items()]
    summary = f"Latency in each engine, {group.title}"
    return dot_chart(rows, engines, milliseconds, unit="least, ms", summary=summary)


def _numbers(results: Results, group: LatencyRecord) -> dict[str, Table]:
    """Every median with its quartiles; the fastest engine of each model in bold."""
    several = len(_engines(group)) > 1
    titles = ("Median", "First quartile", "Third quartile")
    columns = [
        Column("Model"), Column("Engine", names=True),
        *(Column(title, significant, "ms") for title in titles),
        Column("Inputs a second", significant), Column("Rounds", str),
    ]  # fmt: skip
    models = {row.model: results.model(row.model) for row in group.rows}
    order = list(models)
    lines = []
    for row in sorted(group.rows, key=lambda row: order.index(row.model)):
        time, model = quartiles(row.samples_ms), models[row.model]
        rate = 1e3 * group.input_shape[0] / time.median if group.input_shape else None
        cells = [row.engine, time.median, time.q1, time.q3, rate, len(row.samples_ms)]
        best = several and row.engine == fastest_engine(group, row.model)
        lines.append(Line(model.label, cells, model.role, best=best))
    bold = "; the fastest engine of each model in bold" if several else ""
    caption = f"ms a call over the rounds{bold}"
    return {"times": Table(f"Latency, {group.title}", caption, columns, lines)}


def _winners(group: LatencyRecord) -> dict[str, Table]:
    """For how many models each engine is the fastest, and by how much over eager PyTorch."""
    if len(_engines(group)) < 2:
        return {}
    times = {(row.model, row.engine): row.samples_ms for row in group.rows}
    models = list(dict.fromkeys(row.model for row in group.rows))
    won: dict[str, list[str]] = {}
    for model in models:
        won.setdefault(fastest_engine(group, model), []).append(model)
    lines = []
    for engine, theirs in sorted(won.items(), key=lambda item: (-len(item[1]), item[0])):
        over = [
            paired(times[m, "eager"], times[m, engine]).factor
            for m in theirs
            if (m, "eager") in times and engine != "eager"
        ]
        gain = (min(over), max(over)) if over else None
        lines.append(Line(in_engine(engine), [(len(theirs), len(models)), gain]))
    columns = [
        Column("Engine"), Column("Least median time for", of, "models", ("models", "of")),
        Column("Over eager PyTorch", _spread, "times", ("least", "most")),
    ]  # fmt: skip
    name = f"Fastest engines, {group.title}"
    return {
        "winners": Table(
            name, "Which engine is the fastest, and for how many models", columns, lines
        )
    }


def _spread(factors: tuple[float, float]) -> str:
    low, high = map(ratio, factors)
    return low if low == high else f"{low} to {high}"


def _ratios(
    name: str, what: str, head: str, told: Sequence[tuple[str, str, Duel, str]]
) -> dict[str, Table]:
    """Ratios of times, each with its line, its column and a remark; none where there are none."""
    titles = list(dict.fromkeys(column for _, column, _, _ in told))
    lines: dict[str, dict[str, Cell]] = {}
    for line, column, duel, remark in told:
        found = duel.result
        verdict = "ok" if found.wins else "bad" if found.loses else ""
        unsure = "" if found.clear else str(found)
        cell = Cell((found.factor, found.low, found.high), verdict, remark or unsure)
        lines.setdefault(line, {})[column] = cell
    parts = ("median", "first quartile", "third quartile")
    columns = [Column(head), *(Column(title, _ratio, "times faster", parts) for title in titles)]
    rows = [Line(line, [cells.get(title) for title in titles]) for line, cells in lines.items()]
    caption = f"How many times faster {what}, round by round: median, first and third quartile"
    return {"ratios": Table(name, caption, columns, rows)} if rows else {}


def _ratio(found: tuple[float, float, float]) -> str:
    return f"{ratio(found[0])} ({found[1]:.2f} to {found[2]:.2f})"


@section("tradeoff", "Accuracy against latency")
def _tradeoff_parts(results: Results) -> Iterable[Part]:
    for compared in tradeoffs(results):
        families = dict.fromkeys(p.model.family for ps in compared.points.values() for p in ps)
        tables = {"published": _published(compared)}
        for engine in compared.engines:
            told = [
                (
                    f"{short_label(d.other)} ({d.other.published_top1:.1f} %)", d.mine.family, d,
                    short_label(d.mine),
                )
                for d in compared.duels_in(engine)
            ]  # fmt: skip
            name = f"Nets of equal accuracy in {engine}"
            if found := _ratios(name, _LEAST_MEMBER, "Against", told):
                tables[engine] = found["ratios"]
        charts = {engine: _scatter(compared.points[engine], engine) for engine in compared.engines}
        facts = {"compared": compared, "families": [(family, _tone(family)) for family in families]}
        yield Part(compared.group, charts, tables, facts)


def _published(compared: Tradeoff) -> Table:
    """Every net that is drawn, the least accurate first."""
    nets = {p.model.key: p.model for points in compared.points.values() for p in points}
    columns = [
        Column("Net"),
        Column("Top-1", "{:.2f}".format, "%"),
        Column("Trained"),
        Column("Source"),
    ]
    lines = [
        Line(short_label(m), [m.published_top1, m.published_recipe, m.published_in])
        for m in sorted(nets.values(), key=lambda model: model.published_top1 or 0.0)
    ]
    caption = "Published accuracies in %, where from, and how the nets were trained"
    return Table("Published accuracies", caption, columns, lines)


def _tone(family: str) -> str:
    if family == "RepVGG":
        return "deploy"
    return "train" if family in REPARAMETERIZED_FAMILIES else "comparator"


def _scatter(points: Sequence[Point], engine: str) -> Scatter:
    return Scatter(
        [_dot(point, points) for point in points],
        x_title="ms a call, measured here; further left is faster",
        y_title="ImageNet top-1 in %, published",
        summary=f"Published accuracy against latency in {in_engine(engine)}",
    )


def _dot(point: Point, points: Sequence[Point]) -> Dot:
    model, time = point.model, point.latency
    label, prefix = short_label(model), f"{model.family}-"
    short = label.startswith(prefix)
    costs = [
        f"{count(number)} {what}"
        for number, what in ((model.parameters, "parameters"), (model.multiply_adds, "MACs"))
        if number is not None
    ]
    facts = (
        f"{point.top1:.2f} % published",
        model.published_recipe,
        f"{milliseconds(time.median)} ({significant(time.q1)} to {significant(time.q3)})",
        ", ".join(costs),
        _standing(point, points),
    )
    return Dot(
        prefix=prefix if short else "",
        name=label.removeprefix(prefix) if short else label,
        tone=_tone(model.family),
        x=time.median,
        low=time.q1,
        high=time.q3,
        y=point.top1,
        facts=tuple(filter(None, facts)),
        strong=point.front,
        hollow=model.published_longer,
    )


def _standing(point: Point, points: Sequence[Point]) -> str:
    if point.front:
        return "on the Pareto front"
    better = next(
        p for p in points if p.top1 >= point.top1 and p.latency.median <= point.latency.median
    )
    return f"beaten by {short_label(better.model)}"
