"""The numbers of a page as one flat table, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from reparam._support.statistics import quartiles
from reparam.report.benchmarks import engine_label

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.report.results import Results

__all__ = ["to_csv"]

_Row = tuple[str, str, str, str, object, str]
_SIDES = ("channels in", "channels out")
_HEADER = ("section", "group", "subject", "quantity", "value", "unit")


def to_csv(results: Results) -> str:
    """One line for each number: section, group, subject, quantity, value, unit."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    sections = (
        *(_models, _training, _accuracy, _twins, _plan, _checks, _latency, _memory),
        *(_quantizations, _prunings, _differences),
    )
    for section in sections:
        writer.writerows(section(results))
    return buffer.getvalue()


def _models(results: Results) -> Iterator[_Row]:
    for model in results.models:
        for quantity in ("convolutions", "norms", "parameters", "multiply_adds"):
            value = getattr(model, quantity)
            if value is not None:
                yield "models", model.role, model.label, quantity, value, "count"
        if model.published_top1 is not None:
            where = model.published_in
            yield "published", where, model.label, "top-1", model.published_top1, "%"


def _training(results: Results) -> Iterator[_Row]:
    for record in results.training:
        label = results.model(record.model).label
        yield "training", "", label, "epochs", record.epochs, "count"
        yield "training", "", label, "seconds", record.seconds, "s"
        for epoch, loss in enumerate(record.loss, start=1):
            yield "training", f"epoch {epoch}", label, "loss", loss, ""


def _accuracy(results: Results) -> Iterator[_Row]:
    for record in results.accuracy:
        label = results.model(record.model).label
        yield "accuracy", record.engine, label, "correct", record.correct, "images"
        yield "accuracy", record.engine, label, "total", record.total, "images"
    for pair in results.agreement:
        names = f"{results.model(pair.candidate).label} vs {results.model(pair.reference).label}"
        yield "agreement", pair.engine, names, "equal predictions", pair.agree, "images"
        yield "agreement", pair.engine, names, "total", pair.total, "images"


def _twins(results: Results) -> Iterator[_Row]:
    for twin in results.twins.twins if results.twins else ():
        yield "twins", "", twin.label, "learning rate", twin.learning_rate, ""
        yield "twins", "", twin.label, "correct", twin.correct, "images"
        yield "twins", "", twin.label, "total", twin.total, "images"
        for epoch, loss in enumerate(twin.loss, start=1):
            yield "twins", f"epoch {epoch}", twin.label, "loss", loss, ""


def _plan(results: Results) -> Iterator[_Row]:
    for region in results.plan.regions if results.plan else ():
        for form, cost in (("before", region.before), ("after", region.after)):
            yield "plan", form, region.where, "layers", cost.layers, "count"
            yield "plan", form, region.where, "stored numbers", cost.stored, "count"
            yield "plan", form, region.where, "multiply-adds", cost.multiply_adds, "per position"
    for refusal in results.plan.refusals if results.plan else ():
        yield "refusals", refusal.what, refusal.where, "reason", refusal.why, ""


def _checks(results: Results) -> Iterator[_Row]:
    for check in results.checks:
        pair = f"{check.candidate} vs {check.reference}"
        yield "verification", check.what, pair, "max_abs", check.max_abs, ""
        yield "verification", check.what, pair, "max_rel", check.max_rel, ""
        yield "verification", check.what, pair, "ok", check.ok, ""


def _latency(results: Results) -> Iterator[_Row]:
    for group in (*results.latency, *results.benchmarks):
        for row in group.rows:
            label = f"{results.model(row.model).label}, {row.engine}"
            middle = quartiles(row.samples_ms)
            yield "latency", group.title, label, "first quartile", middle.q1, "ms"
            yield "latency", group.title, label, "median", middle.median, "ms"
            yield "latency", group.title, label, "third quartile", middle.q3, "ms"
            yield "latency", group.title, label, "samples", len(row.samples_ms), "count"


def _memory(results: Results) -> Iterator[_Row]:
    for memory in results.memory:
        for trace in memory.traces:
            yield "memory", memory.title, trace.label, "peak", trace.peak_bytes, "bytes"
            if trace.predicted_bytes is not None:
                predicted = trace.predicted_bytes
                yield "memory", memory.title, trace.label, "predicted peak", predicted, "bytes"
            for index, (name, live) in enumerate(
                zip(trace.operators, trace.live_bytes, strict=True), start=1
            ):
                yield "memory", memory.title, trace.label, f"{index} {name}", live, "bytes"


def _quantizations(results: Results) -> Iterator[_Row]:
    for net in results.quantizations:
        label = f"{net.model}, {net.engine}"
        counted = (("correct in float", net.correct_float), ("correct", net.correct))
        for quantity, value in (*counted, ("same class", net.agree), ("samples", net.samples)):
            if value is not None:
                yield "int8", "verdict", label, quantity, value, "samples"
        yield "int8", "verdict", label, "signal to noise", net.output_db, "dB"
        yield "int8", "size", label, "float parameters", net.float_bytes, "bytes"
        yield "int8", "size", label, "file", net.size_bytes, "bytes"
        for layer in net.layers:
            for quantity in ("weight_low", "weight_high", "input_low", "input_high"):
                yield "int8", layer.name, label, quantity, getattr(layer, quantity), ""
            for quantity in ("weight_spread", "input_spread"):
                yield "int8", layer.name, label, quantity, getattr(layer, quantity), "times"
            for quantity in ("weight_db", "input_db", "output_db"):
                yield "int8", layer.name, label, quantity, getattr(layer, quantity), "dB"
            yield "int8", layer.name, label, "kept in float", layer.name in net.kept_float, ""


def _prunings(results: Results) -> Iterator[_Row]:
    for net in results.prunings:
        for when in ("before", "after"):
            for quantity in ("multiply_adds", "parameters"):
                value = getattr(net, f"{quantity}_{when}")
                yield "pruning", when, net.model, quantity, value, "count"
            if (correct := getattr(net, f"correct_{when}")) is not None:
                yield "pruning", when, net.model, "correct", correct, "samples"
            if net.latency is not None:
                time = 1e3 * getattr(net.latency, when)
                yield (
                    "pruning",
                    when,
                    net.model,
                    f"latency, {engine_label(net.latency.engine)}",
                    time,
                    "ms",
                )
            for layer in net.layers:
                for side, channels in zip(_SIDES, getattr(layer, when), strict=True):
                    yield "pruning", when, f"{net.model}, {layer.name}", side, channels, "count"
        if net.samples is not None:
            yield "pruning", "", net.model, "judged on", net.samples, "samples"
        for kept in net.kept:
            yield "pruning", "left alone", f"{net.model}, {kept.where}", "reason", kept.why, ""


def _differences(results: Results) -> Iterator[_Row]:
    for record in results.differences:
        pair = f"{record.first} and {record.second}"
        yield "difference", record.outcome, pair, "numbers compared", record.numbers, "count"
        yield "difference", record.outcome, pair, "operations matched", record.proven, "share"
        if record.effect is not None:
            yield "difference", record.outcome, pair, "effect", record.effect, "share"
