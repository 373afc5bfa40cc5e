"""(c) Accuracy against *deployed* latency: RepVGG-like nets and ResNets, one recipe, three engines.

    python benchmarks/tradeoff_cifar.py            # trains what is missing, then measures
    python benchmarks/tradeoff_cifar.py --measure  # measures again

The first figure of the paper with both axes measured here, and a table that says for which engine
"half the latency at equal accuracy" holds: benchmarks/results/tradeoff_cifar.json.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cifar_common import (
    Records,
    accuracies,
    forward_macs,
    open_cifar,
    parser,
    repvgg,
    resnet,
    run,
    spread,
)
from torch import nn

import reparam
from reparam.data import ImageData
from reparam.training import load_recipe
from reparam.training.checkpoints import RunFiles

NETS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG-S": partial(repvgg, (1, 2, 2), (32, 64, 128), stem_stride=2),
    "RepVGG-M": partial(repvgg, (2, 4, 4), (32, 64, 128), stem_stride=2),
    "RepVGG-L": partial(repvgg, (2, 4, 4), (48, 96, 192), stem_stride=2),
    "RepVGG-XL": partial(repvgg, (2, 4, 4), (64, 128, 256), stem_stride=2),
    "ResNet-8": partial(resnet, (1, 1, 1), (32, 64, 128), stem_stride=2),
    "ResNet-14": partial(resnet, (2, 2, 2), (32, 64, 128), stem_stride=2),
    "ResNet-20": partial(resnet, (3, 3, 3), (32, 64, 128), stem_stride=2),
    "ResNet-20 wide": partial(resnet, (3, 3, 3), (48, 96, 192), stem_stride=2),
}
ENGINES = ("eager", "onnxruntime", "openvino")
BATCHES = (1, 16)


def main() -> None:
    options = parser(__doc__, "tradeoff_cifar")
    options.set_defaults(seeds=[0, 1])
    options.add_argument("--measure", action="store_true", help="train nothing")
    options = options.parse_args()
    data = open_cifar(options)
    recipe = load_recipe("cifar10-fast").override(
        epochs=options.epochs or 20, batch_size=256, optimizer__learning_rate=0.2
    )
    records = Records(options.out, {})
    for seed in options.seeds if not options.measure else ():
        for name, make in NETS.items():
            extra = {"macs": forward_macs(make(), data.image_shape)}
            run(records, f"{name}/{seed}", make, data, recipe, options, seed=seed, extra=extra)
    records.content["latency"] = measure(records, data, options)
    records.content["summary"] = {
        name: {"accuracy": spread(accuracies(records, name))}
        for name in NETS
        if accuracies(records, name)
    }
    records.content["half_the_latency"] = compare(records)
    records.save()
    for row in records.content["half_the_latency"]:
        print(row["sentence"])


def measure(records: Records, data: ImageData, options: Any) -> list[dict[str, Any]]:
    """Measure every trained net in its deployed form: fused, ResNets too."""
    deployed = {}
    for name, make in NETS.items():
        if accuracies(records, name):
            net = make()
            files = RunFiles(options.runs / f"{name}-{options.seeds[0]}")
            reparam.load_checkpoint(net, files.last)
            deployed[name] = reparam.fuse(net.eval())
    example = torch.zeros(1, *data.image_shape)
    measured = reparam.benchmark(deployed, example, engines=ENGINES, batches=BATCHES)
    return [
        {
            "net": entry.case.model,
            "engine": entry.case.engine,
            "batch": entry.case.batch,
            "median_ms": 1e3 * entry.latency.median,
        }
        for entry in measured.measurements
    ]


def compare(records: Records) -> list[dict[str, Any]]:
    """Match every ResNet with the fastest RepVGG that is at least as accurate, in every engine."""
    summary, rows = records.content["summary"], []
    latency = {
        (row["net"], row["engine"], row["batch"]): row["median_ms"]
        for row in records.content["latency"]
    }
    for name in summary:
        if not name.startswith("ResNet"):
            continue
        needed = summary[name]["accuracy"]["mean"]
        for engine in ENGINES:
            for batch in BATCHES:
                rivals = [
                    rival
                    for rival in summary
                    if rival.startswith("RepVGG") and summary[rival]["accuracy"]["mean"] >= needed
                ]
                mine = latency[name, engine, batch]
                best = min(rivals, key=lambda r: latency[r, engine, batch], default=None)
                ratio = None if best is None else latency[best, engine, batch] / mine
                rows.append(
                    {
                        "resnet": name,
                        "engine": engine,
                        "batch": batch,
                        "repvgg": best,
                        "latency_ratio": ratio,
                        "holds": ratio is not None and ratio <= 0.5,
                        "sentence": f"{engine}, batch {batch}: {name} ({100 * needed:.2f} %) "
                        + (
                            "is matched in accuracy by no RepVGG here"
                            if ratio is None
                            else f"is matched by {best} at {ratio:.2f} of its latency"
                        ),
                    }
                )
    return rows


if __name__ == "__main__":
    main()
