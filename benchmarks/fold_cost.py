"""Time and extra peak memory of folding a network, beside timm's conversion and a plain copy.

    python benchmarks/fold_cost.py --model repvgg_b3

Each measurement runs in a process of its own, so that peaks do not mix; the three ways take turns.
The extra peak is the highest resident memory while folding, above that of the loaded model. Ours
includes planning, the float64 checks and the run of both models side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment

RESULTS = Path(__file__).with_name("results") / "fold_cost.json"
WAYS = ("reparam", "timm", "copy")


def resident(field: str) -> int:
    """Bytes of resident memory now (``VmRSS``) or at its highest (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def fold_with(way: str) -> Callable[[nn.Module], object]:
    """The function that is measured."""
    if way == "reparam":
        from reparam import fuse

        return fuse
    if way == "timm":
        from timm.utils.model import reparameterize_model

        return reparameterize_model
    return lambda model: [p.detach().clone() for p in model.parameters()]


def measure(model_name: str, way: str, threads: int) -> dict[str, float]:
    """Measure one way in this process."""
    import timm

    torch.set_num_threads(threads)
    run = fold_with(way)
    run(timm.create_model("repvgg_a0" if way != "copy" else model_name).eval())  # imports, warm-up
    model = timm.create_model(model_name).eval()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
    before = resident("VmRSS")
    start = time.perf_counter()
    result = run(model)
    seconds = time.perf_counter() - start
    extra = resident("VmHWM") - before
    del result
    return {"seconds": seconds, "extra_bytes": float(extra)}


def main() -> None:
    """Run all ways in turn and write the samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="repvgg_b3", help="a timm model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.model, options.way, options.threads)))
        return
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--model", options.model, "--way", way]
            command += ["--threads", str(options.threads)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            samples[way].append(json.loads(found.stdout.splitlines()[-1]))
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    stored["environment"] = describe_environment()
    stored.setdefault("models", {})[options.model] = {
        "threads": options.threads,
        "samples": samples,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_text(RESULTS, json.dumps(stored, indent=2, default=str) + "\n")
    print(f"{options.model}, {options.threads} threads, median of {options.rounds}")
    for way in WAYS:
        seconds = statistics.median(s["seconds"] for s in samples[way])
        extra = statistics.median(s["extra_bytes"] for s in samples[way])
        print(f"  {way:8} {seconds:6.2f} s   extra peak {extra / 2**20:7.0f} MiB")


if __name__ == "__main__":
    main()
