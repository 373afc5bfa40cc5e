"""One CIFAR-10 run of a MobileOne-like net branch by branch and merged.

    python benchmarks/online_curve.py

Same weights, seed, images and recipe, in float32 on one thread. Float32 rounds differently in the
two forms, and training enlarges that; how much, a third run says: branches again, from weights that
are a rounding away. Time is that of the processor, as other work on the
machine does not lengthen it much. The result is benchmarks/results/online_curve.json and a table in
docs/training.md.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from dataclasses import asdict
from typing import Any

import torch
from cifar_common import PAGE, RESULTS, open_cifar, parser
from tables import fill, markdown

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.lab.training import load_recipe
from reparam.models import BranchSpec, MobileOneSpec

FORMS = {"branches": False, "online": True, "branches, a rounding away": False}
IMAGES, EPOCHS = 3000, 4


def main() -> None:
    options = parser(__doc__, "online_curve").parse_args()
    options.images, options.threads = options.images or IMAGES, 1
    data = open_cifar(options)
    recipe = load_recipe("cifar10-fast").override(
        model="", epochs=options.epochs or EPOCHS, batch_size=128, precision="fp32",
        ema__decay=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    spec = MobileOneSpec(
        depths=(1, 2, 2), widths=(24, 48, 96), stem_width=24, strides=(1, 2, 2),
        branches=BranchSpec(kernels=4),
    )  # fmt: skip
    model = reparam.models.MobileOne(spec, num_classes=10)
    runs: dict[str, Any] = {}
    for form, online in FORMS.items():
        start = copy.deepcopy(model)
        if form not in {"branches", "online"}:
            with torch.no_grad():
                for parameter in start.parameters():
                    parameter.mul_(1 + torch.finfo(parameter.dtype).eps)
        with tempfile.TemporaryDirectory() as folder:
            busy = time.process_time()
            result = reparam.train(start, data, recipe=recipe, out=folder, online=online)
        runs[form] = {
            "cpu_seconds": time.process_time() - busy,
            "curve": [asdict(record) for record in result.history],
        }
        print(form, runs[form]["cpu_seconds"], [r.train_loss for r in result.history], flush=True)
    content = {
        "images": options.images, "recipe": recipe.to_dict(), "runs": runs,
        "environment": describe_environment() | {"threads": 1},
    }  # fmt: skip
    write_text(RESULTS / "online_curve.json", json.dumps(content, indent=1) + "\n")
    write_table(content)


def write_table(content: dict[str, Any]) -> None:
    """Write docs/training.md's table: both curves, epoch by epoch, and the time."""
    lines = []
    for form, found in content["runs"].items():
        curve = found["curve"]
        losses = ", ".join(f"{record['train_loss']:.3f}" for record in curve)
        accuracy = f"{100 * curve[-1]['validation_accuracy']:.1f}"
        lines.append([form, losses, accuracy, f"{found['cpu_seconds']:.0f}"])
    header = ["form", "training loss, epoch by epoch", "accuracy, %", "processor seconds"]
    fill(PAGE, "online_curve", markdown(header, lines))


if __name__ == "__main__":
    main()
