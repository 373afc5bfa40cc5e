"""Check that plans never contradict themselves: timm's and torchvision's models, and random graphs.

Each norm, scale and branch of a model is in a region or in exactly one refusal. Models are planned
as they are built, without an example; random networks and ONNX graphs are drawn as in the tests,
from a seed for every 250 of them. What is stored is not done again, so a run can be stopped.

python benchmarks/accounts.py                      # everything; writes results/accounts.json
python benchmarks/accounts.py timm --graphs 0
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from coverage_models import entries
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.frontends.onnx.rules import lift_onnx
from reparam.frontends.torch.rules import lift
from reparam.frontends.torch.skeleton import shared_copy
from reparam.frontends.torch.trace import TraceFailure, trace

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "fuse_onnx")]

from test_property import models  # noqa: E402 (same)

from accounting import unaccounted, unaccounted_norms  # noqa: E402 (lies in tests)
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


def on_graphs(
    drawn: st.SearchStrategy, wrong_of: Callable, count: int, tally: dict[str, int],
    store: Callable[[], None],
) -> None:  # fmt: skip
    """Draw graphs by the chunk, each from its own seed, on top of those that were tallied."""
    while tally.get("graphs", 0) < count:
        more = chunk(drawn, wrong_of, tally.get("graphs", 0))
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
        tally["graphs"] += 1
        tally["regions"] += len(plan.regions)
        tally["refusals"] += len(plan.refusals)
        tally["wrong"] += bool(wrong)

    each()
    return tally


def _network(net: Network) -> tuple[reparam.Plan, list[str]]:
    return wrong_in(net.model)


def _onnx(model: object) -> tuple[reparam.Plan, list[str]]:
    plan = reparam.plan(model)
    return plan, unaccounted(plan, lift_onnx(model, 17))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", default=["timm", "torchvision"])
    parser.add_argument("--graphs", type=int, default=5000, help="random graphs of each kind")
    parser.add_argument("-o", "--out", type=Path, default=OUT)
    given_ = parser.parse_args()
    results = {"environment": describe_environment(), "models": {}, "networks": {}, "onnx": {}}
    if given_.out.exists():
        results |= json.loads(given_.out.read_text(encoding="utf-8"))

    def store() -> None:
        write_text(given_.out, json.dumps(results, indent=1) + "\n")

    on_graphs(networks(), _network, given_.graphs, results["networks"], store)
    on_graphs(models(), _onnx, given_.graphs, results["onnx"], store)
    on_models(set(given_.which), results["models"], store)
    bad = [name for name, result in results["models"].items() if result["wrong"]]
    found = len(bad) + results["networks"].get("wrong", 0) + results["onnx"].get("wrong", 0)
    print(f"{len(results['models'])} models, {results['networks']}, {results['onnx']}: {bad}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
