"""How long `reparam.diff` takes beside fusing both networks that it compares, in processor time.

Each net is compared with its fused form and, read from a file, with its ONNX export; beside it
stands what `reparam.fuse` takes on both. Runs are interleaved, the least of each counts, and only
processor time is taken, as other work may share the machine.

python benchmarks/diff_time.py                 # adds to results/diff_time.json
python benchmarks/diff_time.py --nets timm:resnet18 --runs 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diff_optimizers import build

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment

OUT = Path(__file__).parent / "results" / "diff_time.json"
NETS = (
    "timm:resnet18", "timm:mobilenetv3_small_050", "timm:repvgg_a0", "timm:regnety_002",
    "timm:ghostnet_050", "timm:fastvit_t8", "timm:mobileone_s0", "timm:repvit_m0_9",
    "timm:convnextv2_atto", "torchvision:shufflenet_v2_x0_5", "torchvision:efficientnet_b0",
    "reparam:repvgg_a0",
)  # fmt: skip


def measured(name: str, runs: int) -> dict[str, Any]:
    model, x = build(name)
    fused = reparam.fuse(model, x)
    graph = torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto
    tasks: dict[str, Callable[[], Any]] = {
        "fuse net": lambda: reparam.fuse(model, x),
        "fuse fused net": lambda: reparam.fuse(fused, x),
        "fuse graph": lambda: reparam.fuse(graph),
        "diff net, fused net": lambda: reparam.diff(model, fused, x),
        "diff net, graph": lambda: reparam.diff(model, graph, x),
    }
    took: dict[str, list[float]] = {task: [] for task in tasks}
    for _ in range(runs):
        for task, run in tasks.items():
            start = time.process_time()
            run()
            took[task].append(time.process_time() - start)
    least = {task: round(min(each), 3) for task, each in took.items()}
    return {
        **least,
        "against the fused net": round(
            least["diff net, fused net"] / (least["fuse net"] + least["fuse fused net"]), 3
        ),
        "against the graph": round(
            least["diff net, graph"] / (least["fuse net"] + least["fuse graph"]), 3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), metavar="NET")
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    nets: dict[str, Any] = json.loads(OUT.read_text())["nets"] if OUT.exists() else {}
    for name in options.nets:
        nets[name] = measured(name, options.runs)
        print(name, nets[name], flush=True)
        for share in ("against the fused net", "against the graph"):
            ratios = [each[share] for each in nets.values()]
            print(f"  {share}: median {statistics.median(ratios):.2f}, most {max(ratios):.2f}")
        stored = {"environment": describe_environment(), "runs": options.runs, "nets": nets}
        write_text(OUT, json.dumps(stored, indent=1))


if __name__ == "__main__":
    main()
