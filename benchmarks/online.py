"""Time and memory of a step: plain, online (compiled, too), branch by branch, and RepOptimizer.

    python benchmarks/online.py                         # every net, batch 16, fp32
    python benchmarks/online.py mobileone_s0 repvgg_a0 --size 224 --batch 64 --precision bf16
    python benchmarks/online.py --batch 16 64 --precision fp32 bf16 --threads 1 2 --missing

The forms of a net take turns, and the median of the rounds counts. On one thread, time is that of
the processor, which other work on the machine hardly lengthens; on more it is the clock's, and the
machine has to do nothing else. Memory is what the forward pass keeps for the backward pass,
parameters aside. Results are added to benchmarks/results/online.json, setting by setting;
``--missing`` leaves out those that are there.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import ROOT, fill, markdown
from torch import Tensor, nn

import reparam
from reparam._support.files import write_text
from reparam.branching.rep_optimizer import RepOptimizer, default_scales
from reparam.deploy.benchmarking.environment import describe_environment

RESULTS = Path(__file__).with_name("results") / "online.json"


def main() -> None:
    options = _parser().parse_args()
    grid = itertools.product(
        options.threads, options.batch, options.precision, options.nets or NETS
    )
    for threads, batch, precision, net in grid:
        setting = Setting(net, batch, options.size, precision, threads)
        if options.missing and any(setting.is_of(row) for row in _rows()):
            continue
        torch.set_num_threads(threads)
        row = measure(setting, options.rounds)
        print(json.dumps(row["median"]), setting, flush=True)
        add(setting, row)
    write_table()


class Setting(NamedTuple):
    """What is measured."""

    net: str
    batch: int
    size: int
    precision: str
    threads: int

    def is_of(self, row: dict[str, Any]) -> bool:
        return all(row[name] == value for name, value in self._asdict().items())


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Measure all forms of one net in turns."""
    torch.manual_seed(0)
    x = torch.randn(setting.batch, 3, setting.size, setting.size)
    started = time.perf_counter()
    forms, compiling = NETS[setting.net](x)
    planning, steps = time.perf_counter() - started - compiling, {}
    for form, (net, wrap) in forms.items():
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        steps[form] = _step(net, wrap(optimizer), x, setting.precision)
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    clock = time.process_time if setting.threads == 1 else time.perf_counter
    for _ in range(rounds + 1):
        for form, step in steps.items():
            before = clock()
            step()
            seconds[form].append(clock() - before)
    return {
        **setting._asdict(), "seconds": {f: s[1:] for f, s in seconds.items()},
        "median": {f: statistics.median(s[1:]) for f, s in seconds.items()},
        "kept_bytes": {f: kept(net, x, setting.precision) for f, (net, _) in forms.items()},
        "planning_seconds": planning, "compile_seconds": compiling,
        "environment": describe_environment(),
    }  # fmt: skip


def kept(net: nn.Module, x: Tensor, precision: str) -> int:
    """Bytes of different tensors that a forward pass keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # held, so that no address is used again
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = net(x)
    size = sum(storage.nbytes() for storage in found.values())
    del output
    return size


def _rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    )
    return found


def add(setting: Setting, row: dict[str, Any]) -> None:
    """Put a row in the place of an earlier one of the same settings."""
    rows = [*(r for r in _rows() if not setting.is_of(r)), row]
    write_text(RESULTS, json.dumps({"rows": rows}, indent=1) + "\n")


def write_table() -> None:
    """Write docs/training.md's table from the results."""
    order = list(NETS)
    rows = sorted(
        _rows(),
        key=lambda r: (order.index(r["net"]), r["size"], r["batch"], r["precision"], r["threads"]),
    )
    header = [
        "net", "images", "precision", "threads", "plain, ms", "online, of plain",
        "compiled, of plain", "branches, of plain", "RepOptimizer, of plain",
        "online, of branches", "compiled, of branches", "memory: online", "memory: compiled",
        "memory: branches",
    ]  # fmt: skip
    fill(ROOT / "docs" / "training.md", "online", markdown(header, [_line(row) for row in rows]))


def _line(row: dict[str, Any]) -> list[str]:
    """A row of the table; nets without a plain form have only the ratios of the two others."""
    step, memory = row["median"], row["kept_bytes"]

    def ratio(of: dict[str, float], form: str, base: str = "plain") -> str:
        return f"{of[form] / of[base]:.2f}" if form in of and base in of else "-"

    base = "plain" if "plain" in memory else "branches"
    return [
        row["net"], f"{row['batch']} of {row['size']} px", row["precision"], str(row["threads"]),
        f"{1000 * step['plain']:.0f}" if "plain" in step else "-",
        *(ratio(step, form) for form in ("online", "compiled", "branches", "rep_optimizer")),
        *(ratio(step, form, "branches") for form in ("online", "compiled")),
        *(ratio(memory, form, base) for form in ("online", "compiled")),
        ratio(memory, "branches"),
    ]  # fmt: skip


Form = tuple[nn.Module, Callable[[torch.optim.Optimizer], torch.optim.Optimizer]]
Forms = tuple[dict[str, Form], float]
"""Nets by name, and the seconds that this process took to compile their passes."""


def _step(net: nn.Module, optimizer: Any, x: Tensor, precision: str) -> Callable[[], None]:
    labels = torch.zeros(len(x), dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()

    return step


def _own(name: str) -> Callable[[Tensor], Forms]:
    """Nets of this package: the plain form keeps one kxk branch with its norm."""

    def build(x: Tensor) -> Forms:
        wide = getattr(reparam.models, name)().train()
        plain = copy.deepcopy(wide)
        for module in plain.modules():
            branches = getattr(module, "branches", None)
            if isinstance(branches, nn.Module) and hasattr(branches, "kxk0"):
                module.branches = branches.kxk0
        return _forms(plain, wide, x)

    return build


def _timm(name: str) -> Callable[[Tensor], Forms]:
    """Nets of timm, which have no plain form."""

    def build(x: Tensor) -> Forms:
        import timm

        return _forms(None, timm.create_model(name).train(), x)

    return build


def _branched(kind: str) -> Callable[[Tensor], Forms]:
    """A ResNet-18 and its multi-branch form."""

    def build(x: Tensor) -> Forms:
        from torchvision.models import resnet18

        plain = resnet18().train()
        return _forms(plain, reparam.branch(plain, kind, norms="absorb", init="fresh"), x)

    return build


def _forms(plain: nn.Module | None, wide: nn.Module, x: Tensor) -> Forms:
    found: dict[str, Form] = {} if plain is None else {"plain": (plain, _same)}
    found["online"] = (reparam.online(wide, x), _same)
    plan = reparam.online_plan(wide, x, compile=True)
    found["compiled"] = (plan.apply(), _same)
    found["branches"] = (wide, _same)
    if plain is not None:
        single = copy.deepcopy(plain)
        scales = default_scales(single)
        found["rep_optimizer"] = (single, lambda base: RepOptimizer(base, single, scales))
    return found, plan.compile_seconds


def _same(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer


NETS: dict[str, Callable[[Tensor], Forms]] = {
    "mobileone_s0": _own("mobileone_s0"),
    "repvgg_a0": _own("repvgg_a0"),
    "fastvit_t8": _timm("fastvit_t8"),
    "repvit_m0_9": _timm("repvit_m0_9"),
    "resnet18_dbb": _branched("dbb"),
    "resnet18_acnet": _branched("acnet"),
}


def _net(name: str) -> str:
    if name not in NETS:
        msg = f"{name} is none of {', '.join(NETS)}"
        raise argparse.ArgumentTypeError(msg)
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nets", nargs="*", type=_net, metavar="NET", help=", ".join(NETS))
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], nargs="+", default=["fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--missing", action="store_true", help="leave out what was measured")
    return parser


if __name__ == "__main__":
    main()
