"""(b) Kinds of training blocks at one deployed net: plain, ACNet, DBB, RepVGG, RepOptimizer.

    python benchmarks/block_kinds.py

Accuracy with the training time and the memory of a step beside it, in
benchmarks/results/block_kinds.json. Every arm deploys to the same convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from cifar_common import Records, accuracies, open_cifar, parser, repvgg, run, spread
from torch import nn

import reparam
from reparam.rep_optimizer import RepOptimizer, default_scales, initialize_
from reparam.training import load_recipe

DEPTHS, WIDTHS, STEM_STRIDE = (2, 4, 4), (32, 64, 128), 2
ARMS = ("plain", "acnet", "dbb", "repvgg", "rep_optimizer")


def plain() -> nn.Module:
    """Return one convolution and one BN a block: what all arms deploy to, before folding."""
    return repvgg(DEPTHS, WIDTHS, stem_stride=STEM_STRIDE, branches="neither")


def widened(kind: str) -> nn.Module:
    """Return the plain net with every convolution and its BN made a block of a kind."""
    return reparam.branch(plain(), kind, norms="absorb", init="fresh")


def wrapped(base: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer with the effect of RepVGG's branches."""
    return RepOptimizer(base, model, default_scales(model))


def plain_for_rep_optimizer() -> nn.Module:
    """Return the plain net, begun as the sum of its imagined branches."""
    net = plain()
    initialize_(net, default_scales(net))
    return net


def main() -> None:
    options = parser(__doc__, "block_kinds").parse_args()
    data = open_cifar(options)
    recipe = load_recipe("cifar10-fast").override(
        epochs=options.epochs or 20, batch_size=256, optimizer__learning_rate=0.2
    )
    net = {"depths": DEPTHS, "widths": WIDTHS, "stem_stride": STEM_STRIDE}
    records = Records(options.out, {"net": net})
    makers: dict[str, Callable[[], nn.Module]] = {
        "plain": plain,
        "rep_optimizer": plain_for_rep_optimizer,
    }
    for seed in options.seeds:
        for arm in ARMS:
            make = makers.get(arm, partial(widened, arm))
            wrap = wrapped if arm == "rep_optimizer" else None
            result = run(
                records,
                f"{arm}/{seed}",
                make,
                data,
                recipe,
                options,
                seed=seed,
                wrap_optimizer=wrap,
            )
            if result is not None:
                check_deployed(records, f"{arm}/{seed}", result.model)
    runs = records.content["runs"]
    summary = {}
    for arm in ARMS:
        if not accuracies(records, arm):
            continue
        mine = [entry for key, entry in runs.items() if key.rpartition("/")[0] == arm]
        summary[arm] = {
            "accuracy": spread(accuracies(records, arm)),
            "train_seconds": spread([entry["train_seconds"] for entry in mine]),
            "step_memory_bytes": mine[0]["step_memory_bytes"],
            "deploy_parameters": mine[0]["deploy_parameters"],
        }
    records.content["summary"] = summary
    records.save()
    for arm, entry in summary.items():
        accuracy = entry["accuracy"]
        print(
            f"{arm:14} {100 * accuracy['mean']:.2f} % +- {100 * accuracy['deviation']:.2f}   "
            f"{entry['train_seconds']['mean']:.0f} s   {entry['step_memory_bytes'] / 1e6:.0f} MB"
        )


def check_deployed(records: Records, key: str, model: nn.Module) -> None:
    """Note the size of the deployed net; the arms must agree on it."""
    fused = reparam.fuse(model)
    parameters = sum(p.numel() for p in fused.parameters())
    convolutions = sum(isinstance(m, nn.Conv2d) for m in fused.modules())
    record = records.content["runs"][key]
    record |= {"deploy_parameters": parameters, "deploy_convolutions": convolutions}
    records.save()


if __name__ == "__main__":
    main()
