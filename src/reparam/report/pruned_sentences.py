"""What there is to say of nets with fewer channels: the headline and the key figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.report.benchmarks import engine_label
from reparam.report.numbers import count, milliseconds, percent
from reparam.report.phrases import Figure, points, several_points, span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.lab.pruning.result import LatencyChange
    from reparam.report.compressed import PruningRecord

__all__ = [
    "lost",
    "macs_left",
    "parameters_left",
    "pruned_figures",
    "pruned_sentence",
    "target_verdict",
]


def lost(record: PruningRecord) -> float | None:
    """Points of accuracy lost, or None where nothing was judged."""
    before, after = record.correct_before, record.correct_after
    if before is None or after is None or not record.samples:
        return None
    return 100 * (before - after) / record.samples


def macs_left(record: PruningRecord) -> float:
    """Share of the multiply-adds."""
    return record.multiply_adds_after / record.multiply_adds_before


def parameters_left(record: PruningRecord) -> float:
    """Share of the parameters."""
    return record.parameters_after / record.parameters_before


def pruned_sentence(records: Sequence[PruningRecord]) -> str:
    """The headline; numbers stand between asterisks."""
    if len(records) > 1:
        return _several(records)
    record = records[0]
    left = [f"*{macs_left(record):.2f}* of the multiply-adds"]
    if record.latency is not None:
        left.insert(0 if record.macs_share is None else 1, _latency_clause(record.latency))
    cost = _cost(lost(record), record.samples)
    return f"Pruning leaves {' and '.join(left)}{cost}{_missed(record)}."


def _cost(drop: float | None, samples: int | None) -> str:
    """What the samples show, and how many they were: of few, as many right says little."""
    if drop is None:
        return "; what that costs in accuracy was not judged"
    judged = f"{count(samples or 0)} images"
    if round(drop, 2) == 0:
        return f"; *as many* of {judged} are right as before"
    number = f"*{abs(drop):.2f} points* of accuracy on {judged}"
    if drop < 0:
        return f", with {number} gained"
    return f" and costs {number}, before any training on"


def _missed(record: PruningRecord) -> str:
    verdict = target_verdict(record)
    return "; the target was missed" if verdict and not verdict[1] else ""


def _several(records: Sequence[PruningRecord]) -> str:
    shares = span([macs_left(record) for record in records])
    told = f"Pruning leaves *{shares}* of the multiply-adds of *{len(records)}* nets"
    drops = [drop for record in records if (drop := lost(record)) is not None]
    missed = "; not every target was met" if any(map(_missed, records)) else ""
    if not drops:
        return f"{told}{missed}."
    return f"{told}; accuracy: {several_points(drops)}, before any training on{missed}."


def _latency_clause(timed: LatencyChange) -> str:
    if not timed.clear:
        return f"the latency in {engine_label(timed.engine)} about as it was"
    return f"*{timed.ratio:.2f}* of the latency in {engine_label(timed.engine)}"


def pruned_figures(records: Sequence[PruningRecord], *, brief: bool = False) -> list[Figure]:
    """The key numbers of one net, two where it is to be `brief`; one each of several."""
    if len(records) > 1:
        return [_short_figure(record) for record in records[:4]]
    record = records[0]
    timed = [] if record.latency is None else [_latency_figure(record.latency)]
    judged = _accuracy_figures(record)
    if brief:
        return [*(timed or [_macs_figure(record)]), *judged]
    return [_macs_figure(record), _parameter_figure(record), *timed, *judged]


def _macs_figure(record: PruningRecord) -> Figure:
    counts = f"{count(record.multiply_adds_before)} → {count(record.multiply_adds_after)}"
    return Figure(f"{macs_left(record):.2f}", "of the multiply-adds", counts)


def _parameter_figure(record: PruningRecord) -> Figure:
    counts = f"{count(record.parameters_before)} → {count(record.parameters_after)}"
    return Figure(f"{parameters_left(record):.2f}", "of the parameters", counts)


def _short_figure(record: PruningRecord) -> Figure:
    drop = lost(record)
    label = f"of the multiply-adds of {record.model}"
    detail = "accuracy not judged" if drop is None else f"{points(drop)} of accuracy"
    return Figure(f"{macs_left(record):.2f}", label, detail)


def _latency_figure(timed: LatencyChange) -> Figure:
    times = f"{milliseconds(1e3 * timed.before)} → {milliseconds(1e3 * timed.after)}"
    return Figure(f"{timed.ratio:.2f}", f"of the latency in {engine_label(timed.engine)}", times)


def _accuracy_figures(record: PruningRecord) -> list[Figure]:
    drop = lost(record)
    if drop is None or record.correct_after is None or record.correct_before is None:
        return []
    samples = record.samples or 1
    detail = f"{percent(record.correct_before / samples)} before, {points(drop)}"
    return [Figure(percent(record.correct_after / samples), "right, not trained on yet", detail)]


def target_verdict(record: PruningRecord) -> tuple[str, bool] | None:
    """What was asked for beside what came of it, and whether that is met; None if not known."""
    if record.macs_share is not None:
        met = macs_left(record) <= record.macs_share
        found = f"{macs_left(record):.3f} are left"
    elif record.latency is None:
        return None
    elif record.latency_share is not None:
        met, found = record.latency.ratio <= record.latency_share, _measured(record.latency)
    elif record.latency_ms is not None:
        met, found = 1e3 * record.latency.after <= record.latency_ms, _measured(record.latency)
    else:
        return None
    found = f"{found[:1].upper()}{found[1:]}"
    outcome = "met" if met else "missed"
    return f"Asked for: {record.target}. {found}: the target is {outcome}.", met


def _measured(timed: LatencyChange) -> str:
    return (
        f"measured {milliseconds(1e3 * timed.after)}, {timed.ratio:.2f} of before "
        f"(quartiles {span(timed.quartiles)})"
    )
