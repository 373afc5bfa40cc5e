"""What the times say, for a terminal: the table, the ratios, who wins, what next."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reparam._support.statistics import quartiles
from reparam.report import sentence
from reparam.report.numbers import ratio, significant
from reparam.report.tradeoff import Duel, Tradeoff, form_duels, short_label, tradeoffs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.cli.terminal import Terminal
    from reparam.report import Results
    from reparam.report.paired import Paired
    from reparam.report.results import LatencyRecord


def tell(terminal: Terminal, results: Results) -> None:
    """Print a table of medians and one of ratios for each batch, then what follows from them."""
    for group, tradeoff, duels in _compared(results):
        engines = list(dict.fromkeys(row.engine for row in group.rows))
        # Two short lines a heading leave room for more engines in 80 columns.
        columns = ["", *(engine.replace(" ", "\n") for engine in engines)]
        terminal.table(_title(group), columns, _times(results, group, engines))
        terminal.text()
        if duels:
            terminal.table(
                "How many times faster, round by round (in brackets: undecided)",
                columns,
                _ratios(duels, engines),
            )
            terminal.text()
        if tradeoff is not None:
            for engine in tradeoff.engines:
                terminal.text(sentence("verdict", tradeoff, engine))
            terminal.hint("Note:", "which nets meet is decided by published accuracies alone")
            terminal.text()
        if group.note:
            terminal.hint("Note:", group.note)


def _title(group: LatencyRecord) -> str:
    threads = f"{group.threads} thread{'' if group.threads == 1 else 's'}"
    rounds = min(len(row.samples_ms) for row in group.rows)
    return f"{group.title}, {threads}: ms, medians of {rounds} rounds"


def _times(results: Results, group: LatencyRecord, engines: list[str]) -> list[list[str]]:
    times = {(row.model, row.engine): quartiles(row.samples_ms).median for row in group.rows}
    models = dict.fromkeys(row.model for row in group.rows)
    return [
        [results.model(key).label, *(_cell(times.get((key, engine))) for engine in engines)]
        for key in models
    ]


def _cell(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else significant(milliseconds)


def _ratios(duels: list[Duel], engines: list[str]) -> list[list[str]]:
    """One line a pair: how much faster the first is than the second, engine by engine."""
    pairs = {(duel.mine.key, duel.other.key): duel for duel in duels}
    found = {(duel.mine.key, duel.other.key, duel.engine): duel.result for duel in duels}
    return [
        [_name(duel), *(_factor(found.get((*pair, engine))) for engine in engines)]
        for pair, duel in pairs.items()
    ]


def _factor(result: Paired | None) -> str:
    if result is None:
        return "-"
    shown = ratio(result.factor)
    return shown if result.clear or result.same else f"({shown})"


def _name(duel: Duel) -> str:
    if duel.mine.of == duel.other.of:
        return f"{short_label(duel.mine)}: deploy over train"
    return f"{short_label(duel.mine)} over {short_label(duel.other)}"


def summary(results: Results) -> dict[str, Any]:
    """The same for a program."""
    groups = [
        {
            "input_shape": list(group.input_shape),
            "threads": group.threads,
            "latency_ms": [
                {
                    "model": row.model,
                    "engine": row.engine,
                    "low": spread.q1,
                    "median": spread.median,
                    "high": spread.q3,
                }
                for row in group.rows
                for spread in (quartiles(row.samples_ms),)
            ],
            "ratios": [
                {
                    "faster": duel.mine.key,
                    "than": duel.other.key,
                    "engine": duel.engine,
                    **asdict(duel.result),
                    "clear": duel.result.clear,
                }
                for duel in duels
            ],
            "not_measured": group.note,
        }
        for group, _, duels in _compared(results)
    ]
    return {"command": results.command, "groups": groups}


def _compared(results: Results) -> Iterator[tuple[LatencyRecord, Tradeoff | None, list[Duel]]]:
    """Each group of times, and who is compared with whom in it."""
    compared = {id(each.group): each for each in tradeoffs(results)}
    for group in results.benchmarks:
        found = compared.get(id(group))
        yield group, found, [*form_duels(results, group), *(found.duels if found else ())]
