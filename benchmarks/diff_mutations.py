"""Seed five hundred mutations into small nets, and see that `reparam.diff` finds each where it is.

A mutation changes one layer of a net (a weight by 1e-4 relative, the side of a padding, the order
of groups, an activation, ...; all kinds are in tests/mutations.py), of a module or of its
ONNX file. The changed net is compared with the net itself or with its fused form, the changed file
with the file. Found is: the answer is "different" and names the layer. Whether a mutation does
anything is judged without diff, by running both nets in float64 (files: in the engine); one that
does nothing is drawn again.

python benchmarks/diff_mutations.py                # writes results/diff_mutations.json
python benchmarks/diff_mutations.py --count 50
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from mutable import NETS  # noqa: E402 (lies in tests)
from mutations import (  # noqa: E402 (same)
    MODULES,
    NODES,
    mutated,
    mutated_graph,
    sites,
    sites_in_graph,
    takes_effect,
)  # fmt: skip
from zoo import randomise  # noqa: E402 (same)

OUT = Path(__file__).parent / "results" / "diff_mutations.json"
COUNT = 500
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Subject:
    """A net in the three forms that are compared."""

    module: nn.Module
    fused: nn.Module
    graph: onnx.ModelProto


@dataclass
class Tried:
    """One mutation, and what was found."""

    net: str
    against: str
    kind: str
    layer: str
    outcome: str = ""
    what: str | None = None
    where: tuple[str, str] | None = None
    effect: float | None = None
    found: bool = False


def subject(name: str) -> Subject:
    torch.manual_seed(0)
    module = randomise(NETS[name]()).eval()
    graph = torch.onnx.export(module, (X,), dynamo=True, verbose=False, optimize=False).model_proto
    return Subject(module, reparam.fuse(module, X), graph)


def draws(
    subjects: dict[str, Subject], draw: torch.Generator
) -> Iterator[tuple[Tried, Any, Any, Any]]:
    """Yield mutations without end: in turn each kind, on nets and layers that are drawn.

    With each come the changed net, the net that it was, and what it is to be compared with.
    """
    turn = 0
    while True:
        for against in ("itself", "fused", "onnx"):
            for kind in NODES if against == "onnx" else MODULES:
                turn += 1
                places = [
                    (name, layer)
                    for name, each in subjects.items()
                    for layer in (
                        sites_in_graph(each.graph, kind)
                        if against == "onnx"
                        else sites(each.module, kind)
                    )
                ]
                name, layer = places[int(torch.randint(len(places), (1,), generator=draw))]
                each, tried = subjects[name], Tried(name, against, kind, layer)
                if against == "onnx":
                    changed = mutated_graph(each.graph, kind, layer, draw)
                    yield tried, changed, each.graph, each.graph
                else:
                    changed = mutated(each.module, kind, layer, draw)
                    other = each.fused if against == "fused" else each.module
                    yield tried, changed, each.module, other


def judged(tried: Tried, changed: Any, net: Any) -> Tried:
    found = reparam.diff(changed, net, X)
    tried.outcome, tried.what, tried.effect = found.outcome, found.what, found.effect
    tried.where = found.where
    names = [name for side in found.parts for name in side]
    there = any(name == tried.layer or name.startswith(f"{tried.layer}.") for name in names)
    tried.found = found.outcome == "different" and there
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    subjects = {name: subject(name) for name in NETS}
    results: list[Tried] = []
    idle: Counter[str] = Counter()
    start = time.process_time()
    for tried, changed, net, other in draws(subjects, torch.Generator().manual_seed(options.seed)):
        if not takes_effect(changed, net, X):
            idle[tried.kind] += 1
            continue
        results.append(judged(tried, changed, other))
        if not tried.found:
            print(f"MISSED {tried}", flush=True)
        if len(results) == options.count:
            break
    kinds = Counter(each.kind for each in results)
    found = Counter(each.kind for each in results if each.found)
    for kind, count in kinds.items():
        print(f"{kind:24} {found[kind]:4} of {count}")
    print(f"{sum(found.values())} of {len(results)} found, {time.process_time() - start:.0f} s")
    stored = {
        "environment": describe_environment(),
        "seed": options.seed,
        "kinds": {kind: {"tried": n, "found": found[kind]} for kind, n in kinds.items()},
        "without effect, drawn again": dict(idle),
        "mutations": [asdict(each) for each in results],
    }
    if options.count == COUNT:
        write_text(OUT, json.dumps(stored, indent=1))


if __name__ == "__main__":
    main()
