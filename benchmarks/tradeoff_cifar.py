"""(c) Accuracy against *deployed* latency: RepVGG-like nets and ResNets, one recipe, three engines.

    python benchmarks/tradeoff_cifar.py            # trains what is missing, then measures
    python benchmarks/tradeoff_cifar.py --compare  # trains nothing, measures
    python benchmarks/tradeoff_cifar.py --compare --no-latency

The first figure of the paper with both axes measured here, and a table that says for which engine
"half the latency at equal accuracy" holds: benchmarks/results/tradeoff_cifar.json, docs/training.md
and docs/images/tradeoff_cifar.svg. ResNets are fused too, as far as they can be. Measure on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from cifar_common import (
    PAGE,
    RESULTS,
    Records,
    accuracies,
    open_cifar,
    parser,
    percent,
    spread,
)
from cifar_nets import RUNS, make_net, shared_runs, train_net
from tables import ROOT, fill, markdown

import reparam
from reparam.lab.training.checkpoints import RunFiles

NETS = ("RepVGG-S", "RepVGG-L", "QARepVGG-S", "RepOptimizer-S", "ResNet-S", "ResNet-L")
ENGINES = ("eager", "onnxruntime", "openvino")
BATCHES = (1, 32)
PICTURE = ROOT / "docs" / "images" / "tradeoff_cifar.svg"


def main() -> None:
    options = parser(__doc__, "tradeoff_cifar")
    options.set_defaults(runs=RUNS, seeds=[0, 1])
    options.add_argument("--compare", action="store_true", help="train nothing")
    options.add_argument("--no-latency", action="store_true", help="keep the latencies there are")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    runs = shared_runs(options)
    if not options.compare:
        data = open_cifar(options)
        for seed in options.seeds:
            for name in NETS:
                train_net(runs, name, seed, data, options)
    records = Records(options.out, {"deployed": "fused, float32"})
    if not options.no_latency:
        records.set(latency=measure(runs, options), threads_of_latency=torch.get_num_threads())
    summary = summarise(runs, records.content["latency"])
    rows = compare(summary)
    records.set(summary=summary, half_the_latency=rows)
    if options.out.parent == RESULTS and options.epochs is None and options.images is None:
        fill(PAGE, "tradeoff_cifar", latency_table(summary))
        fill(PAGE, "half_the_latency", half_table(rows))
        draw(summary, PICTURE)
    print(f"{latency_table(summary)}\n\n{half_table(rows)}")


def measure(runs: Records, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every trained net in its deployed form: fused, ResNets too."""
    deployed = {}
    for name in NETS:
        if accuracies(runs, name):
            net = make_net(name)
            reparam.load_checkpoint(net, RunFiles(options.runs / f"{name}-0").last)
            deployed[name] = reparam.fuse(net.eval())
    example = torch.zeros(1, 3, 32, 32)
    measured = reparam.benchmark(
        deployed, example, engines=ENGINES, batches=BATCHES, threads=[options.threads]
    )
    return [
        {
            "net": entry.case.model,
            "engine": entry.case.engine,
            "batch": entry.case.batch,
            "median_ms": 1e3 * entry.latency.median,
        }
        for entry in measured.measurements
    ]


def summarise(runs: Records, latency: list[dict[str, Any]]) -> dict[str, Any]:
    """Return accuracy, work and latencies of every net."""
    summary: dict[str, Any] = {}
    for name in NETS:
        if not accuracies(runs, name):
            continue
        entry = runs.content["runs"][f"{name}/0"]
        summary[name] = {
            "accuracy": spread(accuracies(runs, name)),
            "macs": entry["deploy_macs"],
            "parameters": entry["deploy_parameters"],
            "median_ms": {
                f"{row['engine']}, batch {row['batch']}": row["median_ms"]
                for row in latency
                if row["net"] == name
            },
        }
    return summary


def compare(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Match every ResNet with the fastest plain net that is at least as accurate, in every case."""
    rows = []
    for resnet, its in summary.items():
        if not resnet.startswith("ResNet"):
            continue
        needed = its["accuracy"]["mean"]
        rivals = [
            name
            for name, entry in summary.items()
            if not name.startswith("ResNet") and entry["accuracy"]["mean"] >= needed
        ]
        for case, milliseconds in its["median_ms"].items():
            times = {name: summary[name]["median_ms"][case] for name in rivals}
            best = min(times, key=lambda name: times[name], default=None)
            ratio = None if best is None else times[best] / milliseconds
            rows.append(
                {
                    "resnet": resnet,
                    "case": case,
                    "plain": best,
                    "latency_ratio": ratio,
                    "holds": ratio is not None and ratio <= 0.5,
                }
            )
    return rows


def latency_table(summary: dict[str, Any]) -> str:
    """Return the table of all nets."""
    cases = list(next(iter(summary.values()))["median_ms"])
    rows = [
        (
            name,
            percent(entry["accuracy"]),
            f"{entry['macs'] / 1e6:.1f}",
            *(f"{entry['median_ms'][case]:.3f}" for case in cases),
        )
        for name, entry in summary.items()
    ]
    header = ("deployed net", "test accuracy, %", "M MACs", *(f"{case}, ms" for case in cases))
    return markdown(header, rows)


def half_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of claims."""
    body = []
    for row in rows:
        ratio = row["latency_ratio"]
        body.append(
            (
                row["resnet"],
                row["case"],
                row["plain"] or "none is as accurate",
                "-" if ratio is None else f"{ratio:.2f}",
                "yes" if row["holds"] else "no",
            )
        )
    header = (
        "ResNet",
        "engine",
        "fastest plain net as accurate",
        "its latency / the ResNet's",
        "half the latency?",
    )
    holds = [f"{row['resnet']}, {row['case']}" for row in rows if row["holds"]]
    return f"{markdown(header, body)}\n\nIt holds for: {'; '.join(holds) or 'none of these'}."


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw accuracy against latency, one panel an engine and batch."""
    from matplotlib import pyplot as plt

    cases = list(next(iter(summary.values()))["median_ms"])
    columns = len(BATCHES)
    figure, axes = plt.subplots(
        len(cases) // columns, columns, figsize=(9, 9), sharey=True, squeeze=False
    )
    for case, panel in zip(cases, axes.flat, strict=True):
        for name, entry in summary.items():
            mark = "s" if name.startswith("ResNet") else "o"
            colour = "tab:orange" if name.startswith("ResNet") else "tab:blue"
            place = (entry["median_ms"][case], 100 * entry["accuracy"]["mean"])
            panel.plot(*place, mark, color=colour)
            panel.annotate(name, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        panel.set(title=case, xlabel="ms a call", ylabel="CIFAR-10 test accuracy, %")
        panel.margins(0.25)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
