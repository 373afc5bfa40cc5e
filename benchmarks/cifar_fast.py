"""(d) How fast a good net can be had: accuracy against wall time of the fast recipe.

    python benchmarks/cifar_fast.py            # stopped and started again, it goes on
    python benchmarks/cifar_fast.py --compare  # writes the page from what there is
    python benchmarks/cifar_fast.py --holdout --epochs 3 --widths 32 128 128   # to tune

What is trained is what ``reparam train --recipe cifar10-fast`` trains: reparam.models.FastNet, in
the shape of "94% on CIFAR-10 in 3.29 seconds on a single GPU" (Jordan 2024, arXiv 2404.00498),
made for a GPU. The curve is in
benchmarks/results/cifar_fast.json and docs/training.md. No test-time augmentation in any figure
unless its name says so.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any

import torch
from cifar_common import (
    PAGE,
    RESULTS,
    Records,
    first_process,
    forward_macs,
    open_cifar,
    parser,
    run,
)
from PIL import Image
from plots import COLOURS, Panel, Point, Series, save
from tables import ROOT, fill, markdown
from torch import nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import reparam
from reparam.lab.data import ArraySplit, ImageData, eval_loader
from reparam.lab.training import Recipe, accuracy, finish, load_recipe
from reparam.models import FastNet

WIDTHS = (64, 256, 256)
PICTURE = ROOT / "docs" / "images" / "cifar_fast.svg"
TUNING = RESULTS / "cifar_fast_tuning.json"
"""Runs with ``--holdout --out`` this file, most of them by earlier states of this script."""


def held_out(data: ImageData, count: int = 5000) -> ImageData:
    """Return the training images alone, some of them held out: all that may be tuned on."""
    assert isinstance(data.train, ArraySplit)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(1))
    parts = {"train": data.train.take(order[count:]), "validation": data.train.take(order[:count])}
    return ImageData(**{**vars(data), **parts, "fingerprint": f"{data.fingerprint}-{count}"})


def encoded_again(data: ImageData, quality: int) -> ImageData:
    """Return the data with its training images encoded as JPEG once more, as Pillow does it."""
    assert isinstance(data.train, ArraySplit)
    images = []
    for image in data.train.images:
        file = BytesIO()
        to_pil_image(image).save(file, "JPEG", quality=quality)
        images.append(pil_to_tensor(Image.open(file)))
    train = ArraySplit(torch.stack(images), data.train.labels)
    return ImageData(
        **{**vars(data), "train": train, "fingerprint": f"{data.fingerprint}-jpeg{quality}"}
    )


@torch.no_grad()
def mirrored_accuracy(model: nn.Module, data: ImageData) -> float:
    """Return the accuracy of the mean of the outputs for each image and its mirror image."""
    correct = 0
    for part, expected in eval_loader(data, data.validation, batch_size=500):
        logits = model(part) + model(part.flip(-1))
        correct += int((logits.argmax(dim=1) == expected).sum())
    return correct / len(data.validation)


def main() -> None:
    options = parser(__doc__, "cifar_fast")
    options.set_defaults(seeds=[0])
    options.add_argument("--widths", type=int, nargs=3, default=WIDTHS)
    options.add_argument("--holdout", action="store_true", help="tune: leave the test images alone")
    options.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe values, as in TOML"
    )
    options.add_argument("--quality", type=int, help="encode the training images again as JPEG")
    options.add_argument("--compare", action="store_true", help="train nothing, write the page")
    options = options.parse_args()
    records = Records(options.out, {"tta": "none, except in accuracy_mirrored"})
    if not options.compare:
        train_all(records, options)
    complete = options.images is None and not options.holdout and not options.quality
    if options.out.parent == RESULTS and complete and first_process():
        fill(PAGE, "cifar_fast", text(records))
        fill(PAGE, "cifar_fast_tuning", tuning_table())
        fill(PAGE, "cifar_fast_quality", quality_text())
        draw(records)
        print(text(records))


def train_all(records: Records, options: argparse.Namespace) -> None:
    """Train with every seed what is not trained yet, and finish it."""
    data = open_cifar(options)
    if options.quality:
        data = encoded_again(data, options.quality)
    if options.holdout:
        data = held_out(data)
    recipe = load_recipe("cifar10-fast").override(**changes(options.set))
    if options.epochs:
        recipe = recipe.override(epochs=options.epochs)
    make = partial(FastNet, tuple(options.widths))
    extra = {
        "widths": list(options.widths),
        "holdout": options.holdout,
        "quality": options.quality,
        **cost(make(), recipe, data),
    }
    name = f"{'-'.join(map(str, options.widths))}-e{recipe.epochs}"
    name = "-".join([name, *options.set]).replace("=", "") + "-holdout" * options.holdout
    name += f"-jpeg{options.quality}" if options.quality else ""
    for seed in options.seeds:
        key = f"{name}/{seed}"
        result = run(records, key, make, data, recipe, options, seed=seed, extra=extra)
        if result is not None and first_process():
            mirrored = mirrored_accuracy(result.model, data)
            deployed = finish(result, data, out=result.last.parent, weights="last")
            about = {
                "accuracy_mirrored": mirrored,
                "train_accuracy": accuracy(result.model, data, data.train),
                "deployed": deployed.to_dict(),
            }
            records.put(key, records.content["runs"][key] | about)
            print(deployed)


def cost(net: nn.Module, recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """Return the multiply-adds of an image, full and small, and the FLOPs of the whole run.

    A step costs three forward passes, and a multiply-add is two FLOPs.
    """
    steps = recipe.epochs * (len(data.train) // recipe.batch_size)
    small = recipe.small_first
    small_steps = sum(small.now(step, steps) for step in range(steps))
    macs = forward_macs(net, data.image_shape)
    small_macs = forward_macs(net, (3, small.size, small.size)) if small_steps else 0
    images = recipe.batch_size * (small_steps * small_macs + (steps - small_steps) * macs)
    return {
        "train_form_macs": macs,
        "small": {"pixels": small.size, "steps": small_steps, "macs": small_macs},
        "run_flops": 6 * images,
    }


def text(records: Records) -> str:
    """Return the curve of the recipe's own run as a table, and what came out of every run."""
    finished = [run for run in records.content["runs"].values() if run.get("finished")]
    parts = []
    for entry in sorted(finished, key=is_of_recipe, reverse=True):
        rows = [
            (
                record["epoch"],
                f"{record['seconds'] / 60:.1f}",
                f"{record['train_loss']:.3f}",
                f"{100 * record['validation_accuracy']:.2f}",
            )
            for record in entry["curve"]
        ]
        header = ("epoch", "minutes", "training loss", "test accuracy, %")
        own = is_of_recipe(entry)
        lead = markdown(header, rows) + "\n\n" if own else f"*With {augmentation(entry)}:* "
        parts.append(f"{lead}{conclusion(entry)}")
    return "\n\n".join(parts)


def is_of_recipe(entry: dict[str, Any]) -> bool:
    """Whether a run was trained by the recipe as it is now, in the precision of its machine."""
    return alike(recipe_of(entry), load_recipe("cifar10-fast"))


def recipe_of(entry: dict[str, Any]) -> Recipe:
    """The recipe of a run; what there was no option for at its time is as it was then."""
    return Recipe.from_dict(entry["recipe"])


def alike(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes train in the same way, but for the precision that a machine chose."""
    aside = {"summary": "", "precision": "fp32"}
    return replace(one, **aside) == replace(other, **aside)


def augmentation(entry: dict[str, Any]) -> str:
    augment = entry["recipe"]["augment"]
    cutout = f"{augment['cutout']} pixels cut out" if augment["cutout"] else "nothing cut out"
    return f"shifts of up to {augment['translate']} pixels and {cutout}"


def conclusion(entry: dict[str, Any]) -> str:
    """Say what a run reached, and at what cost."""
    small, recipe = entry["small"], entry["recipe"]
    share = small["steps"] * recipe["batch_size"] / 50000
    return (
        f"**{100 * entry['accuracy']:.2f} %** of the test images in {entry['seconds'] / 60:.1f} "
        f"minutes, of which {entry['train_seconds'] / 60:.1f} in training steps and the rest in "
        "evaluation after every epoch. With the mean over "
        f"each image and its mirror image: {100 * entry['accuracy_mirrored']:.2f} %. The run took "
        f"{entry['cpu_seconds_of_this_start'] / 60:.1f} core-minutes and cost "
        f"{entry['run_flops']:.1e} FLOPs ({small['pixels']}-pixel images in the first "
        f"{share:.1f} epochs). The training images, as they are, get "
        f"{100 * entry['train_accuracy']:.2f} %. After fusing, "
        f"{entry['deployed']['predictions_different']} of "
        f"{entry['deployed']['images_compared']:,} predictions differ."
    )


def tuning_runs() -> list[dict[str, Any]]:
    return list(json.loads(TUNING.read_text())["runs"].values())


def quality_text() -> str:
    """Say what it costs to encode the images once more, by two runs that differ in nothing else."""
    again = next(entry for entry in tuning_runs() if entry.get("quality"))
    as_they_are = next(
        entry
        for entry in tuning_runs()
        if not entry.get("quality") and alike(recipe_of(entry), recipe_of(again))
    )
    lost = 100 * (as_they_are["accuracy"] - again["accuracy"])
    return (
        f"Encoding these images once more, at quality {again['quality']}, costs "
        f"{lost:.1f} points on held-out images in {again['recipe']['epochs']} epochs of a net of "
        f"half the width ({100 * as_they_are['accuracy']:.2f} % to "
        f"{100 * again['accuracy']:.2f} %)."
    )


def tuning_table() -> str:
    """Return what was tried on held-out training images, the best first."""
    found = [entry for entry in tuning_runs() if not entry.get("quality")]
    rows = []
    for entry in sorted(found, key=lambda entry: -entry["accuracy"]):
        recipe, small = entry["recipe"], entry["small"]
        steps = recipe["epochs"] * (45000 // recipe["batch_size"])
        rows.append(
            (
                recipe["epochs"],
                recipe["batch_size"],
                f"{recipe['optimizer']['learning_rate']:g}",
                f"{recipe['optimizer']['weight_decay']:g}",
                f"{recipe['ema']['decay']:g}",
                f"{100 * small['steps'] / steps:.0f} %",
                entry.get("activation", "ReLU"),
                f"{entry['run_flops']:.1e}",
                f"{100 * entry['accuracy']:.2f}",
            )
        )
    header = (
        "epochs", "batch", "learning rate", "weight decay", "average's decay", "steps at 24 pixels",
        "activation", "FLOPs", "held-out accuracy, %",
    )  # fmt: skip
    return markdown(header, rows)


def draw(records: Records) -> None:
    """Draw accuracy against wall time."""
    finished = [run for run in records.content["runs"].values() if run.get("finished")]
    series = tuple(
        Series(
            augmentation(run),
            colour,
            tuple(
                Point(record["seconds"] / 60, 100 * record["validation_accuracy"])
                for record in run["curve"]
            ),
        )
        for run, colour in zip(finished, COLOURS, strict=False)
    )
    panel = Panel("CIFAR-10 (JPEG) test accuracy, %", "minutes on two cores", "", series)
    save(PICTURE, [panel], "Accuracy against wall time of each run")


def changes(pairs: list[str]) -> dict[str, object]:
    """Return recipe overrides from ``optimizer.learning_rate=0.3`` and the like."""
    toml = reparam._support.optional.require("tomllib", extra="train", purpose="Reading options")
    found: dict[str, object] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        found[key.replace(".", "__")] = toml.loads(f"value = {value}")["value"]
    return found


if __name__ == "__main__":
    main()
