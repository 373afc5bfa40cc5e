"""(d) How fast a good net can be had: accuracy against wall time of the fast recipe.

    python benchmarks/cifar_fast.py            # stopped and started again, it goes on
    torchrun --nproc-per-node 2 benchmarks/cifar_fast.py --processes 2 --threads 1
    python benchmarks/cifar_fast.py --compare  # writes the page from what there is
    python benchmarks/cifar_fast.py --holdout --epochs 3 --widths 32 128 128   # to tune

The net is in the shape of "94% on CIFAR-10 in 3.29 seconds on a single GPU" (Jordan 2024, arXiv
2404.00498), whose 94 % (with test-time augmentation) cost 3.6e14 FLOPs: blocks between max pooling,
behind a fixed whitening of 2x2 patches. Blocks have an identity branch, which costs next to
nothing, and the first half of the steps sees smaller images. The curve is in
benchmarks/results/cifar_fast.json and docs/training.md. No test-time augmentation in any figure
unless its name says so.
"""

from __future__ import annotations

import argparse
from functools import partial
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
from tables import ROOT, fill, markdown
from torch import Tensor, nn
from torch.nn import functional

import reparam
from reparam.data import ArraySplit, ImageData, eval_loader
from reparam.models import BRANCHES, Block, BlockSpec
from reparam.training import finish, load_recipe

WIDTHS = (64, 256, 256)
HEAD_SCALE = 1 / 9
TARGET = 0.94
PICTURE = ROOT / "docs" / "images" / "cifar_fast.svg"
BIAS_RATE = 64
"""Learning rate of the normalisations' biases over that of the other weights (Jordan 2024,
section 3.4)."""


RECIPE: dict[str, Any] = {
    "epochs": 13,
    "accumulate": 2,  # the activations of 256 images stay in the cache; those of 512 do not
    "optimizer__learning_rate": 0.6,
    "optimizer__weight_decay": 1.2e-3,
}
"""What this net wants of the recipe; the rest is cifar10-fast."""


class Scale(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class SmallAtFirst(nn.Module):
    """Show smaller images during the first steps of training; nothing else.

    The count of steps is part of the weights, so that a run that was stopped goes on as it would.
    """

    steps: Tensor

    def __init__(self, size: int, until: int) -> None:
        super().__init__()
        self.size = size
        self.until = until
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.steps += 1
        if self.steps > self.until:
            return x
        return functional.interpolate(
            x, size=(self.size, self.size), mode="bilinear", antialias=True
        )


def fast_net(
    whitening: Tensor,
    widths: tuple[int, ...] = WIDTHS,
    branches: str = "identity",
    *,
    small: tuple[int, int] = (32, 0),
    down: str = "pool",
) -> nn.Module:
    """Return the net.

    Args:
        whitening: Fixed filters of the first layer, of shape ``(filters, 3, 2, 2)``.
        widths: Channels of the three stages.
        branches: Of all blocks.
        small: Size of the images during the first steps, and how many steps.
        down: How a stage begins: a block and max pooling (``"pool"``), or a block of stride 2.
    """
    filters = 2 * len(whitening)
    first = nn.Conv2d(3, filters, whitening.shape[-1])
    first.weight.data = torch.cat([whitening, -whitening])
    nn.init.zeros_(first.bias)
    first.requires_grad_(requires_grad=False)
    layers: list[nn.Module] = [SmallAtFirst(*small), first, nn.ReLU()]
    channels = filters
    for width in widths:
        stride = 2 if down == "stride" else 1
        layers.append(_block(channels, width, branches, stride))
        if down == "pool":
            layers.append(nn.MaxPool2d(2))
        layers.append(_block(width, width, branches))
        channels = width
    head = nn.Linear(channels, 10, bias=False)
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head, Scale(HEAD_SCALE))


def _block(channels: int, width: int, branches: str, stride: int = 1) -> nn.Module:
    return Block(
        BlockSpec(
            in_channels=channels, out_channels=width, stride=stride, branches=BRANCHES[branches]
        )
    )


def faster_biases(base: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Let the biases of all normalisations learn faster; they do not decay."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.register_hook(lambda gradient: BIAS_RATE * gradient)
    return base


def held_out(data: ImageData, count: int = 5000) -> ImageData:
    """Return the training images alone, some of them held out: all that may be tuned on."""
    assert isinstance(data.train, ArraySplit)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(1))
    parts = {"train": data.train.take(order[count:]), "validation": data.train.take(order[:count])}
    return ImageData(**{**vars(data), **parts, "fingerprint": f"{data.fingerprint}-{count}"})


def whitening_filters(data: ImageData, size: int = 2, eps: float = 5e-4) -> Tensor:
    """Return the eigenvectors of the patches' covariance, each scaled to variance one.

    Shape (3 * size^2, 3, size, size), from the first 2,000 training images.
    """
    assert isinstance(data.train, ArraySplit)
    images = data.normalise(data.train.images[:2000])
    patches = images.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5)
    flat = patches.reshape(-1, 3 * size * size).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    scaled = vectors / (values + eps).sqrt()
    return scaled.T.flip(0).reshape(-1, 3, size, size).float()


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
    options.add_argument("--branches", choices=sorted(BRANCHES), default="identity")
    options.add_argument("--down", choices=["pool", "stride"], default="pool")
    options.add_argument("--small", type=int, default=24, help="pixels of the first images")
    options.add_argument("--small-share", type=float, default=0.6, help="share of the steps")
    options.add_argument("--holdout", action="store_true", help="tune: leave the test images alone")
    options.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe values, as in TOML"
    )
    options.add_argument("--compare", action="store_true", help="train nothing, write the page")
    options = options.parse_args()
    records = Records(options.out, {"tta": "none, except in accuracy_mirrored"})
    if not options.compare:
        train_all(records, options)
    complete = options.images is None and not options.holdout
    if options.out.parent == RESULTS and complete and first_process():
        fill(PAGE, "cifar_fast", text(records))
        draw(records)
        print(text(records))


def train_all(records: Records, options: argparse.Namespace) -> None:
    """Train with every seed what is not trained yet, and finish it."""
    data = open_cifar(options)
    if options.holdout:
        data = held_out(data)
    recipe = load_recipe("cifar10-fast").override(**RECIPE, **changes(options.set))
    if options.epochs:
        recipe = recipe.override(epochs=options.epochs)
    steps = recipe.epochs * (len(data.train) // recipe.batch_size)
    small_steps = round(options.small_share * steps)
    make = partial(
        fast_net,
        whitening_filters(data),
        tuple(options.widths),
        options.branches,
        small=(options.small, small_steps * recipe.accumulate),
        down=options.down,
    )
    macs = forward_macs(make(), data.image_shape)
    small_macs = forward_macs(make(), (3, options.small, options.small))
    images = recipe.batch_size * (small_steps * small_macs + (steps - small_steps) * macs)
    extra = {
        "widths": list(options.widths),
        "branches": options.branches,
        "down": options.down,
        "small": {"pixels": options.small, "steps": small_steps, "macs": small_macs},
        "bias_rate": BIAS_RATE,
        "holdout": options.holdout,
        "train_form_macs": macs,
        "run_flops": 6 * images,
        "anchor_flops": 3.6e14,
    }
    name = f"{options.branches}-{options.down}-{'-'.join(map(str, options.widths))}"
    name += f"-e{recipe.epochs}-s{options.small}x{options.small_share}"
    name = "-".join([name, *options.set]).replace("=", "") + "-holdout" * options.holdout
    for seed in options.seeds:
        key = f"{name}/{seed}"
        result = run(
            records,
            key,
            make,
            data,
            recipe,
            options,
            seed=seed,
            extra=extra,
            wrap_optimizer=faster_biases,
        )
        if result is not None and first_process():
            mirrored = mirrored_accuracy(result.model, data)
            deployed = finish(result, data, out=result.last.parent)
            about = {"accuracy_mirrored": mirrored, "deployed": deployed.to_dict()}
            records.put(key, records.content["runs"][key] | about)
            print(deployed)


def text(records: Records) -> str:
    """Return the curve of every finished run as a table, and what came out."""
    parts = []
    for entry in records.content["runs"].values():
        if not entry.get("finished"):
            continue
        rows = [
            (
                record["epoch"],
                f"{record['seconds'] / 60:.1f}",
                f"{record['train_loss']:.3f}",
                f"{100 * record['validation_accuracy']:.2f}",
            )
            for record in entry["curve"]
        ]
        small, recipe = entry["small"], entry["recipe"]
        share = small["steps"] * recipe["batch_size"] / 50000
        reached = "reached" if entry["accuracy"] >= TARGET else "not reached"
        processes = f"{entry['processes']} process{'es' * (entry['processes'] > 1)}"
        conclusion = (
            f"**{100 * entry['accuracy']:.2f} %** of the test images in "
            f"{entry['seconds'] / 60:.1f} minutes, of which {entry['train_seconds'] / 60:.1f} in "
            f"training steps and the rest in evaluation: {100 * TARGET:.0f} % was {reached}. With "
            f"the mean over each image and its mirror image: "
            f"{100 * entry['accuracy_mirrored']:.2f} %. The run had {processes} with "
            f"{entry['cpu_seconds_of_this_start'] / 60:.1f} core-minutes of two cores that did "
            f"other work too. It cost {entry['run_flops']:.1e} FLOPs ({small['pixels']}-pixel "
            f"images in the first {share:.1f} epochs); airbench's 94 %, with test-time "
            f"augmentation, cost {entry['anchor_flops']:.1e}. After fusing, "
            f"{entry['deployed']['predictions_different']} of "
            f"{entry['deployed']['images_compared']:,} predictions differ."
        )
        header = ("epoch", "minutes", "training loss", "test accuracy, %")
        parts.append(f"{markdown(header, rows)}\n\n{conclusion}")
    return "\n\n".join(parts)


def draw(records: Records) -> None:
    """Draw accuracy against wall time."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for entry in records.content["runs"].values():
        minutes = [record["seconds"] / 60 for record in entry["curve"]]
        percents = [100 * record["validation_accuracy"] for record in entry["curve"]]
        axes.plot(minutes, percents, "o-", label=f"seed {entry['seed']}")
    axes.axhline(94, color="grey", linestyle=":", label="94 %")
    axes.set(xlabel="minutes on two shared cores", ylabel="CIFAR-10 test accuracy, %")
    axes.legend()
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})
    plt.close(figure)


def changes(pairs: list[str]) -> dict[str, object]:
    """Return recipe overrides from ``optimizer.learning_rate=0.3`` and the like."""
    toml = reparam._optional.require("tomllib", extra="train", purpose="Reading options")
    found: dict[str, object] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        found[key.replace(".", "__")] = toml.loads(f"value = {value}")["value"]
    return found


if __name__ == "__main__":
    main()
