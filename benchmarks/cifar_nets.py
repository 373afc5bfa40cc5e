"""The nets of the CIFAR-10 experiments, by name, and the recipe that all of them are trained by.

net = make_net("RepVGG-S")          # in training form, with random weights
reparam.load_checkpoint(net, path)  # weights of a finished run: runs/cifar/<name>-<seed>/
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from cifar_common import RESULTS, Records, forward_macs, run
from tables import ROOT
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import reparam
from reparam import models
from reparam.branching.rep_optimizer import RepOptimizer, default_scales, initialize_
from reparam.lab.data import ImageData
from reparam.lab.training import Recipe, load_recipe
from reparam.lab.training.result import WrapOptimizer

RUNS = ROOT / "runs" / "cifar"


class ChannelsLast(nn.Module):
    """Hand activations on in channels_last, in which bf16 convolutions need no copies.

    Behind the first layer only: gradients of strided 1x1 convolutions of three channels crash in
    that layout (torch 2.14.1).
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


def repvgg(
    depths: Sequence[int],
    widths: Sequence[int],
    *,
    stem_stride: int = 1,
    branches: str = "repvgg",
) -> nn.Module:
    """Return a RepVGG for images of 32 pixels."""
    spec = models.RepVGGSpec(
        depths=tuple(depths),
        widths=tuple(widths),
        stem_width=widths[0],
        stem_stride=stem_stride,
        strides=(1, *(2 for _ in depths[1:])),
        branches=models.BRANCHES[branches],
    )
    return models.RepVGG(spec, num_classes=10)


def resnet(depths: Sequence[int], widths: Sequence[int], *, stem_stride: int = 1) -> nn.Module:
    """Return a ResNet of basic blocks for images of 32 pixels (He et al. 2016, section 4.2).

    The blocks are torchvision's, with 1x1 convolutions where a stage begins.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], 3, stem_stride, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    channels = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for unit in range(depth):
            stride = 2 if stage and not unit else 1
            shortcut = None
            if stride != 1 or channels != width:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            layers.append(BasicBlock(channels, width, stride, shortcut))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


SMALL: dict[str, Any] = {"depths": (1, 3, 3), "widths": (16, 48, 96), "stem_stride": 2}
LARGE: dict[str, Any] = {"depths": (1, 3, 3), "widths": (24, 64, 128), "stem_stride": 2}


def widened(kind: str) -> nn.Module:
    """Return the small plain net with every convolution and its BN made a block of a kind."""
    return reparam.branch(repvgg(**SMALL, branches="neither"), kind, norms="absorb", init="fresh")


def begin_as_branches(net: nn.Module) -> nn.Module:
    """Return a plain net that begins as the sum of the branches that RepOptimizer imagines."""
    initialize_(net, default_scales(net))
    return net


def begun_as_branches() -> nn.Module:
    """Return the small plain net, begun as branches."""
    return begin_as_branches(repvgg(**SMALL, branches="neither"))


def imagine_branches(base: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer with the effect of RepVGG's branches."""
    return RepOptimizer(base, model, default_scales(model))


@dataclass(frozen=True)
class Net:
    """A net by name: how it is made, and the optimizer's wrapper where it needs one."""

    make: Callable[[], nn.Module]
    wrap_optimizer: WrapOptimizer | None = None


NETS: dict[str, Net] = {
    "Plain-S": Net(partial(repvgg, **SMALL, branches="neither")),
    "Pointwise-S": Net(partial(repvgg, **SMALL, branches="1x1")),
    "Identity-S": Net(partial(repvgg, **SMALL, branches="identity")),
    "RepVGG-S": Net(partial(repvgg, **SMALL)),
    "QARepVGG-S": Net(partial(repvgg, **SMALL, branches="qarepvgg")),
    "RepOptimizer-S": Net(begun_as_branches, imagine_branches),
    "ACNet-S": Net(partial(widened, "acnet")),
    "DBB-S": Net(partial(widened, "dbb")),
    "RepVGG-L": Net(partial(repvgg, **LARGE)),
    "ResNet-S": Net(partial(resnet, (1, 1, 1), (16, 48, 96), stem_stride=2)),
    "ResNet-L": Net(partial(resnet, (1, 1, 1), (32, 64, 128), stem_stride=2)),
}


def make_net(name: str) -> nn.Module:
    """Return a net in its training form with random weights."""
    return NETS[name].make()


def recipe(epochs: int | None = None) -> Recipe:
    """Return the recipe of all nets of this file: short, so that every comparison is repeated."""
    return load_recipe("cifar10-fast").override(
        summary="A few minutes of one core",
        model="",
        precision="bf16",
        epochs=epochs or 6,
        batch_size=128,
        label_smoothing=0.1,
        optimizer__learning_rate=0.1,
        optimizer__momentum=0.9,
        optimizer__weight_decay=5e-4,
        optimizer__norm_bias_rate=1.0,
        augment__translate=2,
        augment__cutout=0,
        small_first__size=0,
        ema__decay=0.0,
    )


def shared_runs(options: argparse.Namespace) -> Records:
    """Return the runs that the experiments share; other numbers of epochs go to a file apart."""
    name = "cifar_runs" if options.epochs is None else f"cifar_runs-{options.epochs}"
    if options.images is not None:
        name += f"-{options.images}"
    return Records(RESULTS / f"{name}.json", {"recipe": recipe(options.epochs).to_dict()})


def train_net(
    records: Records, name: str, seed: int, data: ImageData, options: argparse.Namespace
) -> None:
    """Train a net with one seed, unless it was done already."""
    net = NETS[name]
    torch.manual_seed(seed)
    made = net.make()
    deployed = reparam.fuse(made.eval())
    extra = {
        "deploy_macs": forward_macs(deployed, data.image_shape),
        "deploy_parameters": sum(p.numel() for p in deployed.parameters()),
        "deploy_convolutions": sum(isinstance(m, nn.Conv2d) for m in deployed.modules()),
    }
    run(
        records,
        f"{name}/{seed}",
        net.make,
        data,
        recipe(options.epochs),
        options,
        seed=seed,
        extra=extra,
        wrap_optimizer=net.wrap_optimizer,
    )
