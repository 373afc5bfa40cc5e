"""Accuracy against latency on this machine, engine by engine: the claim of the RepVGG article.

Published accuracies, latencies measured here, all nets in deploy form with random weights. For each
engine one question is answered: does a re-parameterized net take half the time of another net that
it equals in accuracy?

    python benchmarks/tradeoff.py [--threads 2] [--under COMMAND]
    python benchmarks/tradeoff.py --tables     # only write the tables and the picture
    python benchmarks/tradeoff.py --check      # are they up to date?

The nets are made ready first (half an hour on two cores), then measured in slices of about three
minutes each (benchmarks/tradeoff_slices.py), every one in a process of its own; COMMAND is put
before it, for example one that keeps other work off the machine. What is done already is not done
again: remove runs/tradeoff/ to start anew. `reparam bench --figure1` measures a few of the nets in
ten minutes and draws a page.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from plots import COLOURS, Panel, Point, Series, save
from tables import ROOT, fill, markdown
from tradeoff_slices import MODELS, SLICES, measure, merged, prepare

from reparam.report import load_results, sentence
from reparam.report.numbers import significant
from reparam.report.published import REPARAMETERIZED_FAMILIES
from reparam.report.results import ModelRecord, Results
from reparam.report.tradeoff import Duel, Tradeoff, short_label, tradeoffs

PAGE = ROOT / "docs" / "deploy.md"
PICTURE = ROOT / "docs" / "images" / "tradeoff.svg"
RESULTS = ROOT / "benchmarks" / "results" / "tradeoff.json"
DRAWN = ("eager", "ONNX Runtime", "OpenVINO", "ncnn")


def page_tables(results: Results) -> dict[str, str]:
    """The tables of docs/deploy.md by their names."""
    by_batch = {each.group.input_shape[0]: each for each in tradeoffs(results)}
    tables = {"tradeoff-nets": nets_table(by_batch[1])}
    for batch, compared in by_batch.items():
        told = "\n".join(
            f"- {sentence('verdict', compared, engine)}" for engine in compared.engines
        )
        tables[f"tradeoff-{batch}"] = f"{told}\n\n{pairs_table(compared)}"
    return tables


def nets_table(compared: Tradeoff) -> str:
    """Every net: published accuracy, recipe and milliseconds; the Pareto front in bold."""
    times = {(p.model.key, e): p for e in compared.engines for p in compared.points[e]}
    models = {p.model.key: p.model for points in compared.points.values() for p in points}
    rows = []
    for key, model in sorted(models.items(), key=lambda item: item[1].published_top1 or 0.0):
        cells = []
        for engine in compared.engines:
            point = times.get((key, engine))
            shown = "-" if point is None else significant(point.latency.median)
            cells.append(f"**{shown}**" if point is not None and point.front else shown)
        source = f"{model.published_recipe}; {model.published_in}"
        rows.append([short_label(model), f"{model.published_top1:.2f}", *cells, source])
    return markdown(["net", "top-1, %", *compared.engines, "trained; source"], rows)


def pairs_table(compared: Tradeoff) -> str:
    """How many times faster the re-parameterized net is, engine by engine; twice is bold."""

    def cell(duel: Duel | None) -> str:
        if duel is None:
            return "-"
        factor = f"{duel.result.factor:.2f}"
        return f"**{factor}**" if duel.result.low >= 2 else factor

    duels = {(d.mine.key, d.other.key, d.engine): d for d in compared.duels}
    rows = [
        [
            f"{_told(mine)} over {_told(other)}",
            *(cell(duels.get((mine.key, other.key, engine))) for engine in compared.engines),
        ]
        for mine, other in compared.pairs
    ]
    return markdown(["times faster (published top-1)", *compared.engines], rows)


def _told(model: ModelRecord) -> str:
    return f"{short_label(model)} ({model.published_top1:.1f})"


def draw(compared: Tradeoff, *, check: bool) -> bool:
    """Draw accuracy against latency in the engines, with their Pareto fronts."""
    groups = (
        ("re-parameterized", COLOURS[0], True),
        ("others", COLOURS[1], False),
    )
    panels = []
    for engine in (engine for engine in DRAWN if engine in compared.engines):
        points = compared.points[engine]
        front = tuple(Point(p.latency.median, p.top1) for p in points if p.front)
        marks = [
            Series(
                label,
                colour,
                tuple(
                    Point(
                        p.latency.median,
                        p.top1,
                        name=short_label(p.model),
                        hollow=p.model.published_longer,
                    )
                    for p in points
                    if (p.model.family in REPARAMETERIZED_FAMILIES) == chosen
                ),
                line=False,
            )
            for label, colour, chosen in groups
        ]
        series = (Series("Pareto front", COLOURS[5], front, marks=False), *marks)
        panels.append(Panel(engine, "ms a call, one image", "ImageNet top-1, %, published", series))
    told = "Published accuracy against latency measured here, in " + ", ".join(DRAWN)
    return save(PICTURE, panels, told, columns=1, height=440, check=check)


def write_tables(results: Path, *, check: bool = False) -> bool:
    """Put the tables on the page, or compare; whether they stood there already."""
    found = load_results(results)
    same = [fill(PAGE, name, text, check=check) for name, text in page_tables(found).items()]
    single = next(each for each in tradeoffs(found) if each.group.input_shape[0] == 1)
    same.append(draw(single, check=check))
    return all(same)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a call")
    parser.add_argument("--seconds", type=float, default=180.0, help="time for a slice")
    parser.add_argument("--under", default="", metavar="COMMAND", help="runs each slice")
    parser.add_argument("--slice", choices=[part.name for part in SLICES], help="only this one")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--check", action="store_true", help="only compare the page's tables")
    options = parser.parse_args()
    if options.slice is not None:
        [part] = [part for part in SLICES if part.name == options.slice]
        measure(part, options.threads, options.seconds)
        return 0
    if not (options.tables or options.check):
        measure_all(options)
    same = write_tables(RESULTS, check=options.check)
    return int(options.check and not same)


def measure_all(options: argparse.Namespace) -> None:
    """Make the nets ready and measure every slice that has no result."""
    for name in MODELS:
        prepare(name)
    own = [sys.executable, __file__, "--threads", str(options.threads)]
    for part in (part for part in SLICES if not part.path.exists()):
        line = [*own, "--seconds", str(options.seconds), "--slice", part.name]
        subprocess.run([*shlex.split(options.under), *line], check=True)
    found = merged()
    if found is not None:
        found.save(RESULTS)


if __name__ == "__main__":
    sys.exit(main())
