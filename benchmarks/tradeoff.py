"""Accuracy against latency on this machine: RepVGG and ResNets in deploy form, engine by engine.

The picture of RepVGG's first figure with latencies measured here (`reparam bench --figure1`), its
page, and the answer to one question for each engine: is a single path faster than the net with
shortcuts that it equals in published accuracy, and does it take half the time?

    python benchmarks/tradeoff.py [--seconds 480] [--threads 2] [--engines eager,openvino]
    python benchmarks/tradeoff.py --tables     # only write the tables of docs/deploy.md
    python benchmarks/tradeoff.py --check      # are they up to date?
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tables import ROOT, fill, markdown

from reparam.cli import main as reparam_command
from reparam.report import load_results
from reparam.report.numbers import significant
from reparam.report.results import Results
from reparam.report.tradeoff import Duel, Tradeoff, short_label, tradeoffs, verdict

PAGE = ROOT / "docs" / "deploy.md"


def page_tables(results: Results) -> dict[str, str]:
    """The tables of docs/deploy.md by their names."""
    [compared] = tradeoffs(results)
    told = "\n".join(f"- {verdict(compared, engine)}" for engine in compared.engines)
    threads = compared.group.threads
    where = f"{compared.group.title}, {threads} thread{'' if threads == 1 else 's'}."
    tables = {"tradeoff": f"{where}\n\n{pairs_table(compared)}\n\n{told}"}
    if results.memory:
        tables["block-memory"] = memory_table(results)
    return tables


def pairs_table(compared: Tradeoff) -> str:
    """How many times faster the single path is, engine by engine, with both medians."""
    points = {(p.model.key, e): p for e in compared.engines for p in compared.points[e]}

    def cell(duel: Duel) -> str:
        mine, other = (
            significant(points[model.key, duel.engine].latency.median)
            for model in (duel.mine, duel.other)
        )
        factor = f"{duel.result.factor:.2f}×"
        shown = f"**{factor}**" if duel.result.wins else factor
        return f"{shown} ({mine} against {other} ms)"

    def name(duel: Duel) -> str:
        labels = (
            f"{short_label(model)} ({model.published_top1:.2f} %)"
            for model in (duel.mine, duel.other)
        )
        return " over ".join(labels)

    rows: dict[str, list[str]] = {}
    for duel in compared.duels:
        rows.setdefault(name(duel), []).append(cell(duel))
    header = ["pair (published top-1)", *compared.engines]
    return markdown(header, [[pair, *cells] for pair, cells in rows.items()])


def memory_table(results: Results) -> str:
    """Counted and predicted peaks, in units of the block's input."""
    held, eager = results.memory
    peaks = {trace.label: trace.peak_bytes / eager.input_bytes for trace in eager.traces}
    rows = [
        [
            trace.label,
            f"{trace.peak_bytes / 2**20:.2f} MiB",
            f"{trace.peak_bytes / held.input_bytes:g}×",
            f"{(trace.predicted_bytes or 0) / held.input_bytes:g}×",
            f"{peaks[trace.label]:g}×",
        ]
        for trace in held.traces
    ]
    return markdown(["block", "held, counted", "in inputs", "predicted", "eager PyTorch"], rows)


def write_tables(results: Path, *, check: bool = False) -> bool:
    """Put the tables on the page, or compare; whether they stood there already."""
    tables = page_tables(load_results(results))
    found = [fill(PAGE, name, text, check=check) for name, text in tables.items()]
    return all(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="time for all of it")
    parser.add_argument("--threads", help="CPU threads of a call; each engine's default if left")
    parser.add_argument("--engines", help="names with commas; the usual ones if left out")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "tradeoff.json"
    )
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--check", action="store_true", help="only compare the page's tables")
    options = parser.parse_args()
    if options.tables or options.check:
        same = write_tables(options.out, check=options.check)
        return int(options.check and not same)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    line = ["bench", "--figure1", "--seconds", str(options.seconds), "-o", str(options.out)]
    line += ["--precisions", options.precisions]
    for name in ("threads", "engines"):
        if getattr(options, name) is not None:
            line += [f"--{name}", getattr(options, name)]
    code = reparam_command(line)
    if code == 0:
        write_tables(options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
