"""The claims on a GPU: latency of nets in deploy form, a training step of each kind, and memory.

    python benchmarks/gpu.py                      # at most eight minutes on one GPU
    python benchmarks/gpu.py --device cpu --tiny --out tiny.json --seconds 60   # to try it out

Writes JSON after every part, so that what is cut short keeps what it has: raw times of interleaved
rounds in eager fp32, fp16 and bf16 (channels_last) at batch 1 and 128, of torch.compile with CUDA
graphs, of training steps (plain, with branches, `reparam.online` where there is one, RepOptimizer),
and the peak memory of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tables import ROOT
from torch import nn
from torch.nn import functional

import reparam
from reparam._support.files import write_text
from reparam.branching.rep_optimizer import RepOptimizer, default_scales, initialize_
from reparam.cli.targets import load_model
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.errors import ReparamError
from reparam.models import repvgg_a0

NETS = (
    "repvgg_a0", "repvgg_a1", "repvgg_a2", "mobileone_s0", "mobileone_s1", "mobileone_s2",
    "torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet50", "torchvision:resnet101",
    "timm:repvit_m0_9",
)  # fmt: skip
TINY = ("mobileone_s0", "torchvision:resnet18")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Machine:
    """Where the nets run, how a time is taken there, and until when."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.deadline = time.perf_counter() + options.seconds
        self.on_gpu = self.device.type == "cuda"
        self.side = 32 if options.tiny else 224
        self.rounds = 2 if options.tiny else 15

    def left(self) -> float:
        return self.deadline - time.perf_counter()

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        """Return the time of one call, measured over some."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        self.wait()
        return (time.perf_counter() - start) / calls

    def peak(self, call: Callable[[], object]) -> int | None:
        """Return the bytes that a call takes on top of what is there; None without a GPU."""
        if not self.on_gpu:
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() - before

    def rounds_of(self, calls: dict[str, Callable[[], object]]) -> dict[str, dict[str, Any]]:
        """Time calls in turns, after a warm-up in which each says how often a turn repeats it."""
        repeats = {}
        for name, call in calls.items():
            for _ in range(3):
                call()
            repeats[name] = max(1, min(50, round(0.02 / max(self.seconds(call, 1), 1e-6))))
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(self.rounds):
            if number >= 3 and self.left() < 0:
                break
            for name, call in calls.items():
                call()
                samples[name].append(self.seconds(call, repeats[name]))
        return {
            name: {"seconds": times, "peak_bytes": self.peak(calls[name])}
            for name, times in samples.items()
        }


def nets(machine: Machine, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield nets in deploy form; one whose package is not here is left out and named."""
    for name in names:
        try:
            model = load_model(name).model
        except ReparamError as error:
            print(f"left out: {name} ({error})")
            continue
        yield name, reparam.fuse(model, torch.randn(1, 3, 224, 224)).to(machine.device)


def latency(
    machine: Machine, models: dict[str, nn.Module], precision: str, batch: int, mode: str
) -> dict[str, Any]:
    """Time every net at one precision and batch, eager or compiled with CUDA graphs."""
    images = torch.randn(batch, 3, machine.side, machine.side, device=machine.device)
    images = images.to(PRECISIONS[precision], memory_format=torch.channels_last)
    calls: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        net = model.to(PRECISIONS[precision], memory_format=torch.channels_last)
        if mode == "compiled":
            if machine.left() < 60:
                break
            net = torch.compile(net, mode="reduce-overhead")
            net(images)  # compiles
        calls[name] = _bound(net, images)
    return machine.rounds_of(calls)


def _bound(net: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    return lambda: net(images)


def steps(machine: Machine, batch: int) -> dict[str, Any]:
    """Time a training step of RepVGG-A0's kinds: plain, branches, online, RepOptimizer."""
    precision = torch.float16 if machine.on_gpu else torch.bfloat16
    made: dict[str, tuple[nn.Module, bool]] = {
        "plain": (repvgg_a0(branches="neither"), False),
        "branches": (repvgg_a0(), False),
        "RepOptimizer": (repvgg_a0(branches="neither"), True),
    }
    if hasattr(reparam, "online"):
        made["online"] = (reparam.online(repvgg_a0()), False)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, machine.side, machine.side, generator=random)
    labels = torch.randint(0, 1000, (batch,), generator=random)
    data = (images.to(machine.device), labels.to(machine.device))
    calls: dict[str, Callable[[], object]] = {}
    for kind, (net, imagined) in made.items():
        net.to(machine.device).train()
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        if imagined:
            initialize_(net, default_scales(net))
            optimizer = RepOptimizer(optimizer, net, default_scales(net))
        calls[kind] = _step(net, optimizer, data, machine.device.type, precision)
    return machine.rounds_of(calls)


def _step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[torch.Tensor, torch.Tensor],
    device: str,
    precision: torch.dtype,
) -> Callable[[], object]:
    images, labels = data

    def step() -> None:
        with torch.autocast(device, precision):
            loss = functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    options = _options()
    machine = Machine(options)
    content: dict[str, Any] = {"environment": describe_environment(), "side": machine.side}

    def keep(part: str, found: dict[str, Any]) -> None:
        content[part] = found
        write_text(options.out, json.dumps(content, indent=1) + "\n")
        for name, entry in found.items():
            print(f"{part}: {name} {1e3 * statistics.median(entry['seconds']):.2f} ms", flush=True)

    batches = (1, 2) if options.tiny else (1, 128)
    keep("training step", steps(machine, batches[1]))
    models = dict(nets(machine, TINY if options.tiny else NETS))
    with torch.inference_mode():
        for precision in PRECISIONS:
            for batch in batches:
                part = f"eager {precision} batch {batch}"
                keep(part, latency(machine, models, precision, batch, "eager"))
    if machine.on_gpu or options.compile:
        with torch.no_grad():
            keep("compiled fp16 batch 1", latency(machine, models, "fp16", 1, "compiled"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=450.0, help="time for all of it")
    parser.add_argument("--tiny", action="store_true", help="small images, two nets, two rounds")
    parser.add_argument("--compile", action="store_true", help="compile without a GPU, too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --tiny tries the script out")
    return options


if __name__ == "__main__":
    main()
