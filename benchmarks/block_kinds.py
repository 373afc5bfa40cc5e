"""(b) Kinds of training blocks at one deployed net: plain, ACNet, DBB, RepVGG, RepOptimizer.

    python benchmarks/block_kinds.py            # trains what is missing, then measures a step
    python benchmarks/block_kinds.py --compare  # trains nothing
    python benchmarks/block_kinds.py --compare --no-steps

Accuracy with the time and the memory of a training step beside it, in
benchmarks/results/block_kinds.json and docs/training.md. All arms deploy to the same convolutions.
The steps of all arms are timed in turns; run that on a machine that does nothing else.
"""

from __future__ import annotations

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
    seconds_of_steps,
    spread,
)
from cifar_nets import NETS, RUNS, SMALL, make_net, recipe, shared_runs, train_net
from tables import fill, markdown

from reparam.lab.training.optimizers import build_optimizer

ARMS = {
    "plain": "Plain-S",
    "ACNet": "ACNet-S",
    "DBB": "DBB-S",
    "RepVGG": "RepVGG-S",
    "QARepVGG": "QARepVGG-S",
    "RepOptimizer": "RepOptimizer-S",
}


def main() -> None:
    options = parser(__doc__, "block_kinds")
    options.set_defaults(runs=RUNS)
    options.add_argument("--compare", action="store_true", help="train nothing")
    options.add_argument("--no-steps", action="store_true", help="keep the times there are")
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    runs = shared_runs(options)
    if not options.compare:
        data = open_cifar(options)
        for seed in options.seeds:
            for net in ARMS.values():
                train_net(runs, net, seed, data, options)
    records = Records(options.out, {"net": SMALL})
    if not options.no_steps:
        records.set(step_seconds=measure(), threads_of_steps=torch.get_num_threads())
    summary = compare(runs, records.content["step_seconds"])
    records.set(summary=summary)
    if options.out.parent == RESULTS and options.epochs is None and options.images is None:
        fill(PAGE, "block_kinds", text(summary))
    print(text(summary))


def measure() -> dict[str, float]:
    """Return the median time of one step of every arm."""
    how = recipe()
    nets = {}
    for arm, name in ARMS.items():
        torch.manual_seed(0)
        net = make_net(name)
        optimizer = build_optimizer(net, how.optimizer)
        wrap = NETS[name].wrap_optimizer
        nets[arm] = (net, optimizer if wrap is None else wrap(optimizer, net))
    return seconds_of_steps(nets, how, (3, 32, 32))


def compare(runs: Records, step_seconds: dict[str, float]) -> dict[str, Any]:
    """Return accuracy, time and memory of every arm; the arms must deploy to the same net."""
    summary: dict[str, Any] = {}
    for arm, net in ARMS.items():
        if not accuracies(runs, net):
            continue
        entry = next(
            entry
            for key, entry in runs.content["runs"].items()
            if key.startswith(f"{net}/") and entry.get("finished")
        )
        summary[arm] = {
            "accuracy": spread(accuracies(runs, net)),
            "step_seconds": step_seconds[arm],
            "step_memory_bytes": entry["step_memory_bytes"],
            "train_parameters": entry["train_parameters"],
            "deploy_parameters": entry["deploy_parameters"],
            "deploy_convolutions": entry["deploy_convolutions"],
        }
    sizes = {(e["deploy_parameters"], e["deploy_convolutions"]) for e in summary.values()}
    if len(sizes) != 1:
        raise SystemExit(f"the arms deploy to different nets: {sizes}")
    return summary


def text(summary: dict[str, Any]) -> str:
    """Return the table."""
    plain = summary["plain"]
    rows = []
    for arm, entry in summary.items():
        time, memory = entry["step_seconds"], entry["step_memory_bytes"]
        rows.append(
            (
                arm,
                percent(entry["accuracy"]),
                f"{1e3 * time:.1f} ({time / plain['step_seconds']:.2f}x)",
                f"{memory / 1e6:.1f} ({memory / plain['step_memory_bytes']:.2f}x)",
                f"{entry['train_parameters']:,}",
            )
        )
    count, parameters = plain["deploy_convolutions"], plain["deploy_parameters"]
    header = ("trained as", "test accuracy, %", "step, ms", "memory, MB", "parameters")
    return (
        f"{markdown(header, rows)}\n\n"
        f"All of them deploy to the same {count} convolutions with {parameters:,} parameters."
    )


if __name__ == "__main__":
    main()
