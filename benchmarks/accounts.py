"""Check that plans never contradict themselves, and fused random graphs never their originals.

Each norm, scale and branch of a model is in a region or in exactly one refusal. timm's and
torchvision's models are planned as they are built, without an example. Random networks (as modules,
as ``torch.fx.GraphModule`` and as programs of ``torch.export``) and ONNX graphs are drawn as in the
tests, from a seed for every 250 of them, fused, and compared in float64 at two sizes of input.
What is stored is not done again, so a run can be stopped.

python benchmarks/accounts.py                      # everything; writes results/accounts.json
python benchmarks/accounts.py timm --share 0
python benchmarks/accounts.py --share 0.5          # half of the 10,000 random graphs
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from coverage_models import entries
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.frontends.onnx.lift import lift_onnx
from reparam.frontends.torch.rules import lift
from reparam.frontends.torch.skeleton import shared_copy
from reparam.frontends.torch.trace import TraceFailure, trace

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "fuse_onnx")]

from test_property import models  # noqa: E402 (same)

from accounting import unaccounted, unaccounted_norms  # noqa: E402 (lies in tests)
from counting import tensors_of  # noqa: E402 (same)
from onnx_graphs import evaluate  # noqa: E402 (same)
from strategies import Network, networks  # noqa: E402 (same)

CHUNK = 250
OUT = Path(__file__).parent / "results" / "accounts.json"


def wrong_in(model: nn.Module) -> tuple[reparam.Plan, list[str]]:
    """The plan of a model and what it tells twice or not at all."""
    plan = reparam.plan(model)
    wrong = unaccounted_norms(model, plan)
    try:
        lifted = lift(trace(shared_copy(model)))
    except TraceFailure:
        return plan, wrong  # planned in parts; its norms are modules
    return plan, wrong + unaccounted(plan, lifted)


def on_models(which: set[str], results: dict[str, object], store: Callable[[], None]) -> None:
    for entry in entries(which):
        if entry.name in results:
            continue
        plan, wrong = wrong_in(entry.build().eval())
        results[entry.name] = {
            "regions": len(plan.regions),
            "refusals": dict(Counter(r.reason.kind.name for r in plan.refusals).most_common()),
            "wrong": wrong,
        }
        print(f"{entry.name}: {len(plan.regions)} fold, {len(plan.refusals)} refused, {wrong}")
        store()


SHARES = {"networks": 5000, "graph_modules": 1000, "programs": 500, "onnx": 3500}
"""Random graphs of each kind: 10,000 in all."""

TOLERANCE = 1e-9
"""Float64 rounding of some hundred operations, relative to the largest number."""


def on_graphs(
    drawn: st.SearchStrategy, wrong_of: Callable, count: int, tally: dict[str, int],
    store: Callable[[], None],
) -> None:  # fmt: skip
    """Draw graphs by the chunk, each from its own seed, on top of those that were tallied."""
    while tally.get("graphs", 0) < count:
        more = chunk(drawn, wrong_of, sum(tally.get(name, 0) for name in ("graphs", "not_made")))
        tally |= {name: tally.get(name, 0) + number for name, number in more.items()}
        store()
        print(tally, flush=True)


def chunk(drawn: st.SearchStrategy, wrong_of: Callable, first: int) -> Counter[str]:
    tally: Counter[str] = Counter(wrong=0)

    @seed(first)
    @settings(
        max_examples=CHUNK, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(drawn)
    def each(graph: object) -> None:
        plan, wrong = wrong_of(graph)
        tally["graphs" if plan else "not_made"] += 1
        if plan is None:
            return
        tally["regions"] += len(plan.regions)
        tally["refusals"] += len(plan.refusals)
        tally["wrong"] += any(wrong)
        for what in filter(None, wrong):
            print(what, flush=True)

    each()
    return tally


def _network(net: Network) -> tuple[reparam.Plan, list[str]]:
    plan, wrong = wrong_in(net.model)
    fused = reparam.fuse(net.model, net.inputs(0))
    return plan, wrong + [_differ(net, net.model, model) for model in (plan.apply(), fused)]


def _graph_module(net: Network) -> tuple[reparam.Plan | None, list[str]]:
    try:
        traced = torch.fx.symbolic_trace(net.model)
    except Exception:  # noqa: BLE001 (torch.fx raises many kinds: what it cannot trace is no graph)
        return None, []
    plan = reparam.plan(traced, net.inputs(0))
    return plan, [_differ(net, traced, plan.apply())]


def _program(net: Network) -> tuple[reparam.Plan | None, list[str]]:
    try:
        program = torch.export.export(net.model, (net.inputs(0),))
    except Exception:  # noqa: BLE001 (torch.export, too)
        return None, []
    plan = reparam.plan(program)
    return plan, [_differ(net, program.module(), plan.apply().module(), sizes=1)]


def _differ(net: Network, before: nn.Module, fused: nn.Module, sizes: int = 2) -> str:
    """What is wrong with a fused network, if anything; torch.fx's own mistakes are in both."""
    with torch.no_grad():
        for which in range(sizes):
            results = (model(net.inputs(which)) for model in (before, fused))
            for left, right in zip(*map(tensors_of, results), strict=True):
                if left.shape != right.shape or not _near(left.numpy(), right.numpy()):
                    return f"other outputs: {net}"
    return ""


def _near(left: np.ndarray, right: np.ndarray) -> bool:
    if not left.size:
        return True
    return bool(np.abs(left - right).max() <= TOLERANCE * max(1.0, float(np.abs(left).max())))


def _onnx(model: object) -> tuple[reparam.Plan, list[str]]:
    plan = reparam.plan(model)
    wrong = unaccounted(plan, lift_onnx(model, 17))
    x = np.random.default_rng(0).normal(size=(2, 4, 9, 8))
    results = zip(evaluate(model, x), evaluate(plan.apply(), x), strict=True)
    return plan, wrong + ["" if _near(left, right) else "other outputs" for left, right in results]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", default=["timm", "torchvision"])
    parser.add_argument("--share", type=float, default=1.0, help="of the 10,000 random graphs")
    parser.add_argument("-o", "--out", type=Path, default=OUT)
    given_ = parser.parse_args()
    results = {"environment": describe_environment(), "models": {}} | {kind: {} for kind in SHARES}
    if given_.out.exists():
        results |= json.loads(given_.out.read_text(encoding="utf-8"))

    def store() -> None:
        write_text(given_.out, json.dumps(results, indent=1) + "\n")

    warnings.simplefilter("ignore")
    drawn = {
        "networks": (networks(), _network), "onnx": (models(), _onnx),
        "graph_modules": (networks(), _graph_module), "programs": (networks(), _program),
    }  # fmt: skip
    for kind, how in drawn.items():
        on_graphs(*how, round(given_.share * SHARES[kind]), results[kind], store)
    on_models(set(given_.which), results["models"], store)
    bad = [name for name, result in results["models"].items() if result["wrong"]]
    tallies = {kind: results[kind] for kind in SHARES}
    found = len(bad) + sum(tally.get("wrong", 0) for tally in tallies.values())
    print(f"{len(results['models'])} models, {tallies}: {bad}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
