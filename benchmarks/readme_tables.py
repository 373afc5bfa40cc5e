"""The measured tables of README.md, from the committed results.

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

from cifar_fast import is_of_recipe
from tables import ROOT, fill, markdown

from reparam.benchmarking import BenchmarkResult

README = ROOT / "README.md"
RESULTS = Path(__file__).with_name("results")
ENGINES = {"eager": "eager PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PAIRS = (
    ("repvgg_a0, deploy form", "torchvision:resnet18, deploy form"),
    ("repvgg_a1, deploy form", "torchvision:resnet34, deploy form"),
    ("repvgg_a2, deploy form", "torchvision:resnet50, deploy form"),
)


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


def tradeoff() -> str:
    """How many times faster a single path is than the ResNet of equal published accuracy."""
    result = BenchmarkResult.load(RESULTS / "tradeoff.json")
    cases = {(m.case.model, m.case.engine): m.case for m in result.measurements}
    rows = []
    for mine, other in PAIRS:
        ratios = [
            result.ratio(cases[other, engine], cases[mine, engine]).median for engine in ENGINES
        ]
        rows.append([f"{short(mine)} over {short(other)}", *(f"{ratio:.2f}" for ratio in ratios)])
    table = markdown(["times faster", *ENGINES.values()], rows)
    return f"{table}\n\n{machine(result.environment)}"


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


def short(name: str) -> str:
    """Write a model as papers do."""
    word = name.removesuffix(", deploy form").removeprefix("torchvision:")
    return word.replace("repvgg_a", "RepVGG-A").replace("resnet", "ResNet-")


TABLES = {"demo": demo, "fold-cost": fold_cost, "tradeoff": tradeoff, "cifar-fast": fast}


def main() -> int:
    """Write or check all tables."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true")
    check = options.parse_args().check
    stale = [name for name, table in TABLES.items() if not fill(README, name, table(), check=check)]
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
