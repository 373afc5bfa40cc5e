"""Time of folding twenty nets, beside timm's own conversion and one forward of the net.

    python benchmarks/fold_time.py                    # all of them, median of 5
    python benchmarks/fold_time.py repvit_m0_9        # or some

In each round the net is planned, folded, converted by timm and run once (224 pixels, batch 1), one
after the other in one process. Norms have the statistics of a run, as those of a trained net have.
timm converts in place and checks nothing; ours copies, checks each fold in float64, and runs both
nets side by side. The table is written from the results.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment

RESULTS = Path(__file__).with_name("results") / "fold_time.json"
NETS = (
    "repvgg_a0", "repvgg_a2", "repvgg_b0", "repvgg_b3", "mobileone_s0", "mobileone_s1",
    "mobileone_s4", "fastvit_t8", "fastvit_sa12", "repvit_m0_9", "repvit_m1_5", "repghostnet_100",
    "levit_128", "efficientvit_m0", "tiny_vit_5m_224", "resnet18", "resnet50",
    "mobilenetv3_large_100", "efficientnet_b0", "convnext_atto",
)  # fmt: skip
PIXELS = 224


def prepared(name: str) -> nn.Module:
    """A net in eval mode whose norms have the statistics of a run."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, PIXELS, PIXELS))
    return model.eval()


def seconds(run: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def measure(name: str, rounds: int) -> dict[str, Any]:
    """Measure one net: our way, timm's and a forward in turns."""
    from timm.utils.model import reparameterize_model

    model, image = prepared(name), torch.randn(1, 3, PIXELS, PIXELS)
    model(image)
    taken: dict[str, list[float]] = {"plan": [], "apply": [], "timm": [], "forward": []}
    for _ in range(rounds):
        plans: list[reparam.Plan] = []
        taken["plan"].append(seconds(lambda: plans.append(reparam.plan(model))))  # noqa: B023
        taken["apply"].append(seconds(plans[0].apply))
        twin = copy.deepcopy(model)
        taken["timm"].append(seconds(lambda: reparameterize_model(twin, inplace=True)))  # noqa: B023
        taken["forward"].append(seconds(lambda: model(image)))
    folds = stored(twin) < stored(model)
    return {"samples": taken, "timm_folds": folds}


def stored(model: nn.Module) -> int:
    """Number of a net's parameters and buffers."""
    return len(model.state_dict())


def table(record: dict[str, Any]) -> str:
    """Write the medians as a table, slowest against timm first."""
    lines = [
        "| net | ours, s | timm, s | ours / timm | in forwards at 224 px |",
        "|---|---|---|---|---|",
    ]
    rows = []
    for name, net in record["nets"].items():
        samples = net["samples"]
        both = zip(samples["plan"], samples["apply"], strict=True)
        ours = statistics.median(plan + apply for plan, apply in both)
        other, forward = (statistics.median(samples[key]) for key in ("timm", "forward"))
        ratio = ours / other if net["timm_folds"] else None
        told = "folds nothing" if ratio is None else f"{ratio:.1f}"
        row = f"| {name} | {ours:.2f} | {other:.2f} | {told} | {ours / forward:.1f} |"
        rows.append((-(ratio or 0.0), row))
    return "\n".join([*lines, *(row for _, row in sorted(rows))])


def main() -> None:
    """Measure, write the samples, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=list(NETS), help="timm models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print the table of what is stored")
    options = parser.parse_args()
    record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"nets": {}}
    if not options.table:
        torch.set_num_threads(options.threads)
        measure("repvgg_a0", 1)  # imports and caches
        for name in options.nets:
            record["nets"][name] = {"threads": options.threads, **measure(name, options.rounds)}
            record["environment"] = describe_environment()
            write_text(RESULTS, json.dumps(record, indent=2, default=str) + "\n")
            print(name, "done", flush=True)
    print(table(record))


if __name__ == "__main__":
    main()
