"""What the page shows of a net in both forms: accuracy, memory, proof, and the first lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reparam._support.statistics import quartiles
from reparam.report.marks import Axis, Chart, Mark, Row, accuracy_chart, dot_chart, share_bar
from reparam.report.numbers import (
    count,
    error,
    kibibytes,
    nice_ticks,
    of,
    plain,
    ratio,
    significant,
    times,
)
from reparam.report.paired import paired
from reparam.report.sections import Part, section
from reparam.report.tables import Cell, Column, Line, Table

if TYPE_CHECKING:
    from reparam.report.results import MemoryRecord, Results, TraceRecord

EAGER = "eager"


def key_facts(results: Results) -> dict[str, Any]:
    """What the first lines tell of the two forms, as far as it was measured."""
    train, deploy = results.by_role("train"), results.by_role("deploy")
    both = train is not None and deploy is not None and train.convolutions is not None
    return {
        "forms": (train, deploy) if both else None,
        "agreement": next((r for r in results.agreement if r.engine == EAGER), None),
        "largest": next(
            (check.max_abs for check in results.checks if check.agree is not None), None
        ),
        "speed": _speed(results),
        "memory": _memory_pair(results),
    }


def _speed(results: Results) -> dict[str, Any] | None:
    """Train and deploy form, eager, in the first group of timings."""
    train, deploy = results.by_role("train"), results.by_role("deploy")
    groups = results.latency or results.benchmarks
    if not groups or train is None or deploy is None:
        return None
    timed = {row.model: row.samples_ms for row in groups[0].rows if row.engine == EAGER}
    if not {train.key, deploy.key} <= timed.keys():
        return None
    before, after = timed[train.key], timed[deploy.key]
    return {
        "before": quartiles(before).median,
        "after": quartiles(after).median,
        "result": paired(before, after, of_medians=True),
    }


def _memory_pair(results: Results) -> tuple[MemoryRecord, TraceRecord, TraceRecord] | None:
    """The first figure in which both forms of the model are drawn."""
    for memory in results.memory:
        own = {results.role_of(trace): trace for trace in reversed(memory.traces) if trace.model}
        if {"train", "deploy"} <= own.keys():
            return memory, own["train"], own["deploy"]
    return None


@section("block", "The block, before and after")
def _block(results: Results) -> Iterable[Part]:
    if results.block:
        branches = (*results.block.before, *results.block.after)
        yield Part(
            results.block, facts={"rows": max((len(b.operators) for b in branches), default=0)}
        )


@section("accuracy", "Accuracy")
def _accuracy(results: Results) -> Iterable[Part]:
    if not results.accuracy:
        return
    order = [model.key for model in results.models]
    listed = sorted(results.accuracy, key=lambda record: order.index(record.model))
    models = {record.model: results.model(record.model) for record in listed}
    bars = [
        share_bar(
            models[record.model].label,
            models[record.model].role,
            record.correct,
            record.total,
            detail="" if record.engine == EAGER else record.engine,
            solid=record.engine == EAGER,
        )
        for record in listed
    ]
    judged_on = " and ".join(dict.fromkeys(record.on for record in listed))
    chart = accuracy_chart(bars, f"Top-1 accuracy on the {judged_on}")
    lines = [
        Line(models[r.model].label, [r.engine, r.correct, r.total, r.on], models[r.model].role)
        for r in listed
    ]
    columns = [
        Column("Model"), Column("Engine", names=True), Column("Right", plain, "images"),
        Column("Of", plain, "images"), Column("Judged on"),
    ]  # fmt: skip
    tables = {"right": Table("Images right", "Images put in their class", columns, lines)}
    yield Part(charts={"accuracy": chart}, tables=tables | _agreement(results))


def _agreement(results: Results) -> dict[str, Table]:
    columns = [
        Column("Compared"), Column("Engine", names=True),
        Column("Equal", of, "images", ("equal", "of")),
    ]  # fmt: skip
    lines = [
        Line(
            f"{results.model(row.candidate).label} and {results.model(row.reference).label}",
            [row.engine, (row.agree, row.total)],
        )
        for row in results.agreement
    ]
    caption = "Equal predictions on the test images"
    return {"agreement": Table("Equal predictions", caption, columns, lines)} if lines else {}


@section("training", "Training")
def _training(results: Results) -> Iterable[Part]:
    if not results.training:
        return
    named = [(results.model(record.model), record) for record in results.training]
    columns = [
        Column("Trained"), Column("Epochs", plain), Column("Seconds", "{:,.1f}".format, "s"),
    ]  # fmt: skip
    lines = [Line(m.label, [r.epochs, r.seconds], m.role) for m, r in named]
    tables = {"training": Table("Training", "How long the training took", columns, lines)}
    losses = {model.label: record.loss for model, record in named if record.loss}
    charts = {"losses": _falling(losses)} if losses else {}
    yield Part(charts=charts, tables=tables | _losses(list(losses.items())))


def _falling(losses: Mapping[str, Sequence[float]]) -> Chart:
    """The losses epoch by epoch, from top to bottom."""
    epochs = range(max(map(len, losses.values())))
    rows = [
        (f"Epoch {i + 1}", "", {label: loss[i] for label, loss in losses.items() if loss[i:]})
        for i in epochs
    ]
    summary = "Training loss of each epoch"
    drawn = dot_chart(rows, list(losses), significant, unit="least", summary=summary)
    return replace(drawn, most=24, more="more epochs")


def _losses(named: Sequence[tuple[str, Sequence[float]]]) -> dict[str, Table]:
    """The loss of each epoch, for each that was trained."""
    epochs = range(max((len(loss) for _, loss in named), default=0))
    columns = [Column("Epoch"), *(Column(label, lambda v: f"{v:.2f}") for label, _ in named)]
    lines = [
        Line(str(epoch + 1), [loss[epoch] if epoch < len(loss) else None for _, loss in named])
        for epoch in epochs
    ]
    return (
        {"losses": Table("Training loss", "Training loss of each epoch", columns, lines)}
        if lines
        else {}
    )


@section("twins", "With branches and without")
def _twins(results: Results) -> Iterable[Part]:
    if results.twins is None:
        return
    twins = results.twins.twins
    bars = [
        share_bar(t.label, t.role, t.correct, t.total, detail=f"learning rate {t.learning_rate:g}")
        for t in twins
    ]
    chart = accuracy_chart(bars, "Top-1 accuracy on the test images, with branches and without")
    columns = [
        Column("Trained"), Column("Learning rate", "{:g}".format),
        Column("Right", of, "images", ("right", "of")), Column("Seconds", "{:,.1f}".format, "s"),
    ]  # fmt: skip
    lines = [
        Line(t.label, [t.learning_rate, (t.correct, t.total), t.seconds], t.role) for t in twins
    ]
    table = Table("With branches and without", "How each was trained", columns, lines)
    losses = _losses([(twin.label, twin.loss) for twin in twins])
    yield Part(results.twins, {"accuracy": chart}, {"forms": table} | losses)


@section("memory", "Peak activation memory")
def _memory(results: Results) -> Iterable[Part]:
    for memory in results.memory:
        if memory.traces:
            roles = [results.role_of(trace) for trace in memory.traces]
            yield Part(
                memory,
                {str(i): _life(memory, i, roles[i]) for i in range(len(roles))},
                {"peaks": _peaks(memory, roles)}
                | {str(i): _steps(trace) for i, trace in enumerate(memory.traces)},
                {"roles": roles},
            )


def _life(memory: MemoryRecord, index: int, role: str) -> Chart:
    """The bytes alive while each operator ran, on one scale with the other pieces."""
    trace = memory.traces[index]
    rows = [
        Row(
            name,
            [
                Mark("bar" if live == trace.peak_bytes else "bar open", 0, live / 1024),
                Mark("across", trace.peak_bytes / 1024),
            ],
            kibibytes(live),
            role=role,
        )
        for name, live in zip(trace.operators, trace.live_bytes, strict=True)
    ]
    summary = f"{memory.title}: {trace.label}, peak {kibibytes(trace.peak_bytes)}. Step by step"
    most = max(max((*t.live_bytes, t.peak_bytes)) for t in memory.traces) / 1024
    axis = Axis(nice_ticks(most, wanted=4), "KiB")
    return Chart(summary, axis, rows, most=14, more="more operators")


def _peaks(memory: MemoryRecord, roles: Sequence[str]) -> Table:
    deploy = dict(zip(reversed(roles), reversed(memory.traces), strict=True)).get("deploy")
    predicted = any(trace.predicted_bytes is not None for trace in memory.traces)
    units = Column("In units of the input", times)
    columns = [Column("Block"), Column("Peak", kibibytes, "bytes"), units]
    columns += [Column("Predicted", times)] if predicted else []
    columns += [Column("Times the deploy form's", ratio)] if deploy else []
    size = memory.input_bytes
    lines = []
    for trace, role in zip(memory.traces, roles, strict=True):
        expected = trace.predicted_bytes
        cells: list[Any] = [trace.peak_bytes, trace.peak_bytes / size]
        cells += [None if expected is None else expected / size] if predicted else []
        cells += [trace.peak_bytes / deploy.peak_bytes] if deploy else []
        lines.append(Line(trace.label, cells, role))
    caption = "Peaks in units of the input: counted, and as the branches let expect"
    return Table(memory.title, caption if predicted else "Peaks", columns, lines)


def _steps(trace: TraceRecord) -> Table:
    columns = [Column("Step"), Column("Operator", names=True), Column("Alive", kibibytes, "bytes")]
    steps = zip(trace.operators, trace.live_bytes, strict=True)
    lines = [Line(str(i), [name, live]) for i, (name, live) in enumerate(steps, start=1)]
    return Table(f"{trace.label}, steps", trace.label, columns, lines, sortable=False)


@section("verification", "Verification")
def _verification(results: Results) -> Iterable[Part]:
    if not results.checks:
        return
    columns = [
        Column("Check"), Column("Compared", names=True), Column("Max. absolute", error),
        Column("Max. relative", error), Column("Allowed"),
        Column("Equal predictions", of, "images", ("equal", "of")), Column("Result"),
    ]  # fmt: skip
    lines = [
        Line(
            check.what,
            [
                f"{check.candidate} against {check.reference}",
                check.max_abs,
                check.max_rel,
                check.tolerance,
                None if check.agree is None else (check.agree, check.total),
                Cell("equal", "ok") if check.ok else Cell("different", "bad"),
            ],
        )
        for check in results.checks
    ]
    caption = "Two models on the same inputs: the largest difference, and what was allowed"
    yield Part(tables={"checks": Table("Checks", caption, columns, lines)})


@section("models", "The models")
def _models(results: Results) -> Iterable[Part]:
    if not results.models:
        return
    counted = ("convolutions", "norms", "parameters", "multiply_adds")
    titles = ("Convolutions", "Batch norms", "Parameters", "Multiply-adds")
    columns = [Column("Model"), *(Column(title, count) for title in titles)]
    lines = [
        Line(m.label, [getattr(m, name) for name in counted], m.role, m.note)
        for m in results.models
    ]
    caption = "What was compared; multiply-adds are for one input"
    yield Part(tables={"models": Table("The models", caption, columns, lines)})
