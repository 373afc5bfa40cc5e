"""The measured tables of README.md and docs/how.md, from the committed results.

    python benchmarks/readme_tables.py            # writes them
    python benchmarks/readme_tables.py --check    # fails where README says something else

The demo's numbers are a copy of what it left: `make demo`, then
`cp demo-output/results.json benchmarks/results/demo.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fold_time as folding
import parallel_convs as parallel
from cifar_fast import is_of_recipe
from cifar_tradeoff_tables import in_short
from tables import ROOT, fill, markdown
from when import one_image

from reparam.report.tradeoff import Duel, in_engine, short_label

README, HOW = ROOT / "README.md", ROOT / "docs" / "how.md"
RESULTS = Path(__file__).with_name("results")
ENGINES = {"eager": "eager PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PAIRS = (
    ("repvgg_a0", "torchvision:resnet18"),
    ("repvgg_a1", "torchvision:resnet34"),
    ("repvgg_a2", "torchvision:resnet50"),
    ("mobileone_s1", "torchvision:resnet34"),
    ("mobileone_s2", "torchvision:resnet50"),
    ("timm:repvit_m0_9", "torchvision:resnet101"),
    ("timm:repvit_m1_1", "timm:resnet50.a1_in1k"),
    ("mobileone_s1", "torchvision:efficientnet_b0"),
    ("timm:repghostnet_100", "torchvision:mobilenet_v3_large"),
)
"""The paper's pairs; families made for today's engines; and what these do not beat by far."""


def read(name: str) -> dict[str, Any]:
    """Read a committed result."""
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def machine(environment: Mapping[str, Any]) -> str:
    """Say what machine a table is of, for ratios of times move with the processor."""
    sets = environment.get("instruction_sets", [environment["cpu_capability"]])
    widest = "AVX-512" if any("avx512" in name.lower() for name in sets) else ", ".join(sets)
    return f"One machine: {environment['cores']} cores of an {environment['cpu']} with {widest}."


def demo() -> str:
    """What `make demo` measured."""
    results = read("demo.json")
    group = max(results["latency"], key=lambda each: each["input_shape"][0])
    times = {(r["model"], r["engine"]): statistics.median(r["samples_ms"]) for r in group["rows"]}
    engines = list(dict.fromkeys(row["engine"] for row in group["rows"]))
    correct = {a["model"]: a for a in results["accuracy"] if a["engine"] == "eager"}
    same = next(a for a in results["agreement"] if a["engine"] == "eager")
    trained = {t["model"]: f"{t['seconds']:.0f} s" for t in results["training"]}
    lead = (
        f"What `make demo` trained ({trained['train']}, and the ResNet beside it "
        f"{trained['resnet']}), folded and timed. Train form and deploy form predicted the same "
        f"class for {same['agree']} of the {same['total']} test images:"
    )
    header = [f"{group['input_shape'][0]} images a call", "convolutions", "batch norms"]
    header += ["parameters", "accuracy", *(ENGINES.get(e.lower(), e) for e in engines)]
    table = markdown(
        header,
        [
            [
                model["label"],
                model["convolutions"],
                model["norms"],
                f"{model['parameters'] / 1e3:.0f} k",
                f"{correct[model['key']]['correct'] / correct[model['key']]['total']:.1%}",
                *(f"{times[model['key'], engine]:.1f} ms" for engine in engines),
            ]
            for model in results["models"]
            if model["key"] in correct
        ],
    )
    return f"{lead}\n\n{table}"


def fold_cost() -> str:
    """Time and memory of folding, beside timm and a plain copy."""
    record = read("fold_cost.json")
    samples = record["models"]["repvgg_b3"]["samples"]
    names = {
        "reparam": ("`reparam.fuse`", "every fold in float64, every trace, both models run"),
        "timm": ("timm `reparameterize_model`", "none"),
        "copy": ("a plain copy of the parameters", "-"),
    }
    table = markdown(
        ["RepVGG-B3", "time", "extra peak memory", "checks included"],
        [
            [
                label,
                f"{statistics.median(s['seconds'] for s in samples[way]):.2f} s",
                f"{statistics.median(s['extra_bytes'] for s in samples[way]) / 2**20:,.0f} MiB",
                checks,
            ]
            for way, (label, checks) in names.items()
        ],
    )
    return f"{table}\n\n{machine(record['environment'])}"


def fold_time() -> str:
    """Say how folding compares with timm's conversion, and a forward."""
    record = read("fold_time.json")
    return f"{folding.claim(record)} {machine(record['environment'])}"


def fold_steps() -> str:
    """Show the time of folding net by net, and where it goes."""
    return folding.table(read("fold_time.json"))


def tradeoff() -> str:
    """How many times faster a re-parameterized net is than one of equal published accuracy."""
    engines, by_pair = whole_pairs()
    rows = [
        [_pair(by_pair[pair][0]), *(f"{duel.result.factor:.2f}" for duel in by_pair[pair])]
        for pair in PAIRS
    ]
    table = markdown(["times faster (published top-1, %)", *map(in_engine, engines)], rows)
    return f"{table}\n\n{machine(read('tradeoff.json')['environment'])}"


def _pair(duel: Duel) -> str:
    sides = (f"{short_label(m)} ({m.published_top1:.1f})" for m in (duel.mine, duel.other))
    return " over ".join(sides)


def lead() -> str:
    """The strongest statements that hold in every engine, and the paper's that does not."""
    engines, by_pair = whole_pairs()
    best = [
        strongest(by_pair, other) for other in ("torchvision:resnet50", "timm:resnet50.a1_in1k")
    ]
    paper = by_pair["repvgg_a2", "torchvision:resnet50"]
    named = ", ".join(map(in_engine, engines))
    return (
        "**At equal or better published ImageNet accuracy, re-parameterized nets leave ResNets "
        f"behind on two x86-64 cores: {'; '.join(map(_range, best))}.** One image a call, in "
        f"{named}; the recipes differ (`python benchmarks/tradeoff.py`, table below). The paper's "
        f"3x3 nets do not reach twice the speed there: {_range(paper)}."
    )


def whole_pairs() -> tuple[list[str], dict[tuple[str, str], list[Duel]]]:
    """The engines in single precision, and the pairs that all of them timed."""
    compared = one_image()
    engines = [engine for engine in compared.engines if not engine.endswith((" bf16", " int8"))]
    by_pair: dict[tuple[str, str], list[Duel]] = {}
    for duel in (duel for duel in compared.duels if duel.engine in engines):
        by_pair.setdefault((duel.mine.of, duel.other.of), []).append(duel)
    whole = {pair: met for pair, met in by_pair.items() if len(met) == len(engines)}
    return engines, whole


def strongest(by_pair: dict[tuple[str, str], list[Duel]], other: str) -> list[Duel]:
    """The pair with a net whose least gain over all engines is the largest."""
    met = [duels for (_, of), duels in by_pair.items() if of == other]
    return max(met, key=lambda duels: min(duel.result.factor for duel in duels))


def _range(duels: list[Duel]) -> str:
    factors = [duel.result.factor for duel in duels]
    mine, other = (
        f"{short_label(model)} ({model.published_top1:.1f} %)"
        for model in (duels[0].mine, duels[0].other)
    )
    return f"{mine} runs {min(factors):.1f} to {max(factors):.1f} times as fast as {other}"


def fast() -> str:
    """What the fast recipe reaches on CIFAR-10."""
    runs = read("cifar_fast.json")["runs"].values()
    run = next(run for run in runs if run.get("finished") and is_of_recipe(run))
    return (
        "CIFAR-10 (JPEG) from scratch by the recipe `cifar10-fast` "
        "(`python benchmarks/cifar_fast.py`): "
        f"**{100 * run['accuracy']:.2f} %** of the test images after "
        f"{run['seconds'] / 60:.0f} minutes on these two cores "
        f"({100 * run['accuracy_mirrored']:.2f} % with each image's mirror image beside it; "
        "[the curve](docs/training.md#how-fast-a-good-net-can-be-had))."
    )


TABLES = {
    "lead": lead,
    "demo": demo,
    "fold-time": fold_time,
    "fold-cost": fold_cost,
    "tradeoff": tradeoff,
    "cifar-tradeoff": lambda: in_short(read("cifar_tradeoff.json")),
    "cifar-fast": fast,
}


OF_HOW = {
    "fold-time": fold_steps,
    "parallel-convs": lambda: parallel.table(read("parallel_convs.json")),
}


def main() -> int:
    """Write or check all tables."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true")
    check = options.parse_args().check
    stale = [name for name, table in TABLES.items() if not fill(README, name, table(), check=check)]
    stale += [name for name, table in OF_HOW.items() if not fill(HOW, name, table(), check=check)]
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
