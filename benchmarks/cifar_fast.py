"""(d) How fast a good net can be had: accuracy against wall time of the fast recipe.

    python benchmarks/cifar_fast.py            # stopped and started again, it goes on
    python benchmarks/cifar_fast.py --epochs 8

The net is RepVGG blocks between max pooling, behind a fixed whitening of 2x2 patches, in the shape
of "94% on CIFAR-10 in 3.29 seconds on a single GPU" (Jordan 2024, arXiv 2404.00498); that paper's
94 % cost 3.6e14 FLOPs. The curve is in benchmarks/results/cifar_fast.json. No test-time
augmentation in any figure unless its name says so.
"""

from __future__ import annotations

from functools import partial

import torch
from cifar_common import Records, forward_macs, open_cifar, parser, run
from torch import Tensor, nn

import reparam
from reparam.data import ArraySplit, ImageData
from reparam.models import BRANCHES, Block, BlockSpec
from reparam.training import finish, load_recipe

WIDTHS = (64, 256, 256)
HEAD_SCALE = 1 / 9


class Scale(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def fast_net(
    whitening: Tensor, widths: tuple[int, ...] = WIDTHS, branches: str = "repvgg"
) -> nn.Module:
    """Return the net; `whitening` has the shape (filters, 3, 2, 2)."""
    filters = 2 * len(whitening)
    first = nn.Conv2d(3, filters, whitening.shape[-1])
    first.weight.data = torch.cat([whitening, -whitening])
    first.weight.requires_grad_(False)
    nn.init.zeros_(first.bias)
    layers: list[nn.Module] = [first, nn.ReLU()]
    channels = filters
    for width in widths:
        layers += [
            Block(BlockSpec(in_channels=channels, out_channels=width, branches=BRANCHES[branches])),
            nn.MaxPool2d(2),
            Block(BlockSpec(in_channels=width, out_channels=width, branches=BRANCHES[branches])),
        ]
        channels = width
    head = nn.Linear(channels, 10, bias=False)
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), head, Scale(HEAD_SCALE))


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
    images, labels = data.tensors(data.validation)
    correct = 0
    for part, expected in zip(images.split(500), labels.split(500), strict=True):
        logits = model(part) + model(part.flip(-1))
        correct += int((logits.argmax(dim=1) == expected).sum())
    return correct / len(labels)


def main() -> None:
    options = parser(__doc__, "cifar_fast")
    options.set_defaults(seeds=[0])
    options.add_argument("--widths", type=int, nargs=3, default=WIDTHS)
    options.add_argument("--branches", choices=sorted(BRANCHES), default="repvgg")
    options.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe values, as in TOML"
    )
    options = options.parse_args()
    data = open_cifar(options)
    recipe = load_recipe("cifar10-fast")
    if options.epochs:
        recipe = recipe.override(epochs=options.epochs)
    recipe = recipe.override(**changes(options.set))
    make = partial(fast_net, whitening_filters(data), tuple(options.widths), options.branches)
    macs = forward_macs(make(), data.image_shape)
    extra = {
        "widths": list(options.widths),
        "branches": options.branches,
        "train_form_macs": macs,
        "run_flops": 6 * macs * recipe.epochs * len(data.train),
        "anchor_flops": 3.6e14,
    }
    records = Records(options.out, {"tta": "none, except in accuracy_mirrored"})
    for seed in options.seeds:
        name = f"{options.branches}-{'-'.join(map(str, options.widths))}-e{recipe.epochs}"
        name = "-".join([name, *options.set]).replace("=", "")
        key = f"{name}/{seed}"
        result = run(records, key, make, data, recipe, options, seed=seed, extra=extra)
        if result is None:
            continue
        record = records.content["runs"][key]
        record["accuracy_mirrored"] = mirrored_accuracy(result.model, data)
        deployed = finish(result, data, out=result.last.parent)
        record["deployed"] = deployed.to_dict()
        records.save()
        print(
            f"{key}: {100 * result.validation_accuracy:.2f} % in {result.seconds / 60:.1f} min "
            f"(with mirrored images {100 * record['accuracy_mirrored']:.2f} %)"
        )
        print(deployed)


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
