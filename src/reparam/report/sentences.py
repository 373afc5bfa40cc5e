"""What the numbers say, in sentences that are computed from them and hide nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reparam._support.statistics import quartiles
from reparam.report.differences import difference_sentence
from reparam.report.int8_sentences import int8_figures, int8_sentence
from reparam.report.numbers import count, error, kibibytes, milliseconds, percent, ratio
from reparam.report.paired import paired
from reparam.report.phrases import Figure, Phrase, sentence
from reparam.report.plan import plan_sentence
from reparam.report.pruned_sentences import pruned_figures, pruned_sentence
from reparam.report.tradeoff import Tradeoff, headline_clause, in_engine, tradeoffs

if TYPE_CHECKING:
    from reparam.report.results import (
        AgreementRecord,
        LatencyRecord,
        MemoryRecord,
        Results,
        TimingRecord,
        TraceRecord,
    )

__all__ = [
    "accuracy_remarks",
    "figures",
    "further",
    "headline",
    "latency_remarks",
    "memory_remarks",
]

_SAME = 0.03
"""Ratios nearer to one than this are called equal."""

_EAGER = "eager"


@dataclass(frozen=True)
class _Comparison:
    """A factor and the word that goes with it, as in "1.6x faster"."""

    factor: float
    better: str
    worse: str
    equal: str
    clear: bool = True

    def words(self) -> tuple[str, str]:
        """The number, and what it means; the number is empty where there is no difference."""
        if abs(self.factor - 1) <= _SAME or not self.clear:
            return "", self.equal
        if self.factor > 1:
            return ratio(self.factor), self.better
        return ratio(1 / self.factor), self.worse


def headline(results: Results) -> list[Phrase]:
    """The one sentence: of the two forms or the trade-off, else of eight bits, else of pruning."""
    return next(iter(_sentences(results)), [Phrase(results.title)])


def further(results: Results) -> list[str]:
    """What a page that holds several things says below its headline, a sentence for each."""
    return ["".join(phrase.text for phrase in told) for told in _sentences(results)[1:]]


def _sentences(results: Results) -> list[list[Phrase]]:
    found = [_of_the_forms(results)]
    if results.quantizations:
        found.append(sentence(int8_sentence(results.quantizations)))
    if results.prunings:
        found.append(sentence(pruned_sentence(results.prunings)))
    if results.differences:
        found.append(sentence(difference_sentence(results.differences)))
    told = [each for each in found if each]
    # Beside what was measured, the plan has its own section alone.
    return told or ([sentence(plan_sentence(results.plan))] if results.plan else [])


def _of_the_forms(results: Results) -> list[Phrase]:
    """Convolutions, predictions, speed and memory, as far as they were measured."""
    clauses = [
        clause
        for clause in (
            _convolutions(results),
            _predictions(results),
            _speed(results),
            _memory(results),
        )
        if clause
    ]
    compared = next(iter(tradeoffs(results)), None)
    if compared and not clauses:
        return [Phrase(*piece) for piece in headline_clause(compared)]
    phrases: list[Phrase] = []
    for index, clause in enumerate(clauses):
        phrases += clause
        phrases.append(Phrase(_separator(index, len(clauses))))
    return _capitalised(phrases)


def _separator(index: int, total: int) -> str:
    if index == total - 1:
        return "."
    return ": " if index == 0 else ", "


def _capitalised(phrases: list[Phrase]) -> list[Phrase]:
    if not phrases:
        return []
    first = phrases[0]
    return [Phrase(first.text[:1].upper() + first.text[1:], first.strong), *phrases[1:]]


def _convolutions(results: Results) -> list[Phrase]:
    train, deploy = results.by_role("train"), results.by_role("deploy")
    if train is None or deploy is None or train.convolutions is None:
        return []
    return [
        Phrase(count(train.convolutions), strong=True),
        Phrase(" convolutions became "),
        Phrase(count(deploy.convolutions), strong=True),
    ]


def _main_agreement(results: Results) -> AgreementRecord | None:
    return next((r for r in results.agreement if r.engine == _EAGER), None)


def _predictions(results: Results) -> list[Phrase]:
    record = _main_agreement(results)
    if record is None:
        return []
    if record.agree == record.total:
        return [
            Phrase("the same predictions on all "),
            Phrase(count(record.total), strong=True),
            Phrase(" test images"),
        ]
    return [
        Phrase("the predictions differ on "),
        Phrase(count(record.total - record.agree), strong=True),
        Phrase(f" of {count(record.total)} test images"),
    ]


def _forms_timed(results: Results) -> tuple[TimingRecord, TimingRecord] | None:
    """Train and deploy form, eager, in the first group of timings."""
    train, deploy = results.by_role("train"), results.by_role("deploy")
    groups = results.latency or results.benchmarks
    if not groups or train is None or deploy is None:
        return None
    timed = _timed(groups[0])
    before, after = timed.get((train.key, _EAGER)), timed.get((deploy.key, _EAGER))
    return (before, after) if before and after else None


def _timed(group: LatencyRecord) -> dict[tuple[str, str], TimingRecord]:
    return {(row.model, row.engine): row for row in group.rows}


def _median(row: TimingRecord) -> float:
    return quartiles(row.samples_ms).median


def _compared(before: TimingRecord, after: TimingRecord, words: tuple[str, str]) -> _Comparison:
    """How much faster `after` is by the medians shown; undecided unless most rounds agree."""
    found = paired(before.samples_ms, after.samples_ms)
    factor = _median(before) / _median(after)
    equal = "the same speed" if found.same else "no clear difference in speed"
    clear = found.clear and (factor > 1) == (found.factor > 1)
    return _Comparison(factor, *words, equal, clear=clear)


def _speed(results: Results) -> list[Phrase]:
    timed = _forms_timed(results)
    if timed is None:
        return []
    where = f" in {in_engine(timed[1].engine)}"
    comparison = _compared(*timed, (f"faster{where}", f"slower{where}"))
    return _clause(replace(comparison, equal=comparison.equal + where))


def _memory(results: Results) -> list[Phrase]:
    pair = _memory_pair(results)
    if pair is None:
        return []
    memory, train, deploy = pair
    what = f"peak activation memory {memory.scope}".rstrip()
    factor = train.peak_bytes / deploy.peak_bytes
    return _clause(_Comparison(factor, f"less {what}", f"more {what}", f"the same {what}"))


def _memory_pair(results: Results) -> tuple[MemoryRecord, TraceRecord, TraceRecord] | None:
    """The first figure in which both forms of the model are drawn."""
    for memory in results.memory:
        own = [trace for trace in reversed(memory.traces) if trace.model]
        roles = {results.role_of(trace): trace for trace in own}
        if "train" in roles and "deploy" in roles:
            return memory, roles["train"], roles["deploy"]
    return None


def _clause(comparison: _Comparison) -> list[Phrase]:
    number, words = comparison.words()
    return [Phrase(number, strong=True), Phrase(f" {words}")] if number else [Phrase(words)]


def figures(results: Results) -> list[Figure]:
    """The key numbers under the headline."""
    found = [_convolution_figure(results), _agreement_figure(results), _speed_figure(results)]
    found.append(_memory_figure(results))
    told = [figure for figure in found if figure is not None]
    told = told or [
        figure for compared in tradeoffs(results)[:1] for figure in _pair_figures(compared)
    ]
    brief = sum(map(bool, (told, results.quantizations, results.prunings))) > 1
    if results.quantizations:
        told += int8_figures(results.quantizations, brief=brief)
    if results.prunings:
        told += pruned_figures(results.prunings, brief=brief)
    return told


def _pair_figures(compared: Tradeoff) -> list[Figure]:
    """How many pairs the re-parameterized nets win, engine by engine."""
    told = []
    for engine in compared.engines:
        results = [duel.result for duel in compared.duels_in(engine)]
        if results:
            wins = sum(result.wins for result in results)
            factors = [result.factor for result in results]
            spread = f"{min(factors):.2f}× to {max(factors):.2f}× as fast"
            label = f"pairs won in {in_engine(engine)}"
            told.append(Figure(f"{wins} of {len(results)}", label, spread))
    return told


def _convolution_figure(results: Results) -> Figure | None:
    train, deploy = results.by_role("train"), results.by_role("deploy")
    if train is None or deploy is None or train.convolutions is None:
        return None
    norms = f"{train.norms} → {deploy.norms} batch norms"
    return Figure(f"{train.convolutions} → {deploy.convolutions}", "convolutions", norms)


def _agreement_figure(results: Results) -> Figure | None:
    record = _main_agreement(results)
    if record is None:
        return None
    largest = next((check.max_abs for check in results.checks if check.agree is not None), None)
    detail = "" if largest is None else f"largest logit difference {error(largest)}"
    return Figure(f"{record.agree} / {record.total}", "equal predictions", detail)


def _speed_figure(results: Results) -> Figure | None:
    timed = _forms_timed(results)
    if timed is None:
        return None
    before, after = timed
    number, words = _compared(before, after, ("faster", "slower")).words()
    words = f"{words} in {in_engine(after.engine)}"
    change = f"{milliseconds(_median(before))} → {milliseconds(_median(after))}"
    return Figure(number or "≈", words, change)


def _memory_figure(results: Results) -> Figure | None:
    pair = _memory_pair(results)
    if pair is None:
        return None
    memory, train, deploy = pair
    comparison = _Comparison(
        train.peak_bytes / deploy.peak_bytes, "less memory", "more memory", "the same memory"
    )
    number, words = comparison.words()
    peaks = f"{kibibytes(train.peak_bytes)} → {kibibytes(deploy.peak_bytes)}"
    return Figure(number or "1×", f"{words} {memory.scope}".rstrip(), peaks)


def accuracy_remarks(results: Results) -> list[str]:
    """What the test images say about the two forms, and about the comparator."""
    remarks = []
    by_model = {record.model: record for record in results.accuracy if record.engine == _EAGER}
    train, deploy = results.by_role("train"), results.by_role("deploy")
    other = results.by_role("comparator")
    if train and deploy and {train.key, deploy.key} <= by_model.keys():
        before, after = by_model[train.key], by_model[deploy.key]
        same = before.correct == after.correct
        remarks.append(
            f"Both forms get {after.correct} of {after.total} images right."
            if same
            else f"Train form gets {before.correct} of {before.total} images right, "
            f"deploy form {after.correct}."
        )
    if deploy and other and {deploy.key, other.key} <= by_model.keys():
        mine, its = by_model[deploy.key], by_model[other.key]
        remarks.append(_against(other.label, mine.correct - its.correct, its.correct, its.total))
    return remarks


def _against(label: str, lead: int, correct: int, total: int) -> str:
    got = f"{label} gets {correct} ({percent(correct / total)})"
    if lead == 0:
        return f"{got}, as many."
    which = "fewer" if lead > 0 else "more"
    images = "image" if abs(lead) == 1 else "images"
    return f"{got}, {abs(lead)} {images} {which}."


def latency_remarks(results: Results, group: LatencyRecord) -> list[str]:
    """The comparisons a reader would make: the two forms, and the comparator, engine by engine."""
    timed = _timed(group)
    roles = {results.model(row.model).role: results.model(row.model) for row in group.rows}
    remarks = []
    for engine in dict.fromkeys(row.engine for row in group.rows):
        for other in ("train", "comparator"):
            if "deploy" not in roles or other not in roles:
                continue
            mine = timed.get((roles["deploy"].key, engine))
            its = timed.get((roles[other].key, engine))
            if mine is not None and its is not None:
                remarks.append(_remark(engine, roles[other].label, its, mine))
    return remarks


def _remark(engine: str, label: str, its: TimingRecord, mine: TimingRecord) -> str:
    where = "eager PyTorch" if engine == _EAGER else engine
    comparison = _compared(its, mine, ("faster than", "slower than"))
    number, words = comparison.words()
    if number:
        return f"In {where} the deploy form is {number} {words} {label}."
    if words == "the same speed":
        return f"In {where} the deploy form is as fast as {label}."
    return f"In {where} neither the deploy form nor {label} is clearly faster in this run."


def memory_remarks(results: Results, memory: MemoryRecord) -> list[str]:
    """The deploy form's peak beside each of the others, and in units of the input."""
    mine = next((t for t in memory.traces if results.role_of(t) == "deploy"), None)
    if mine is None:
        return []
    maps = ", ".join(
        f"{trace.label} {trace.peak_bytes / memory.input_bytes:.3g}×" for trace in memory.traces
    )
    remarks = [f"In units of the input, the peaks are: {maps}."]
    for trace in memory.traces:
        if trace is not mine:
            factor = trace.peak_bytes / mine.peak_bytes
            number, words = _Comparison(factor, "less than", "more than", "the same as").words()
            lead = f"{mine.label}: {number} {words}".replace(":  ", ": ")
            remarks.append(f"{lead} {trace.label}.")
    return remarks
