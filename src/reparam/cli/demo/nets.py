"""How large the story is told, and the nets of it: a RepVGG, a ResNet of its size, a deep one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from reparam._support.optional import require
from reparam.models import BRANCHES, RepVGG, RepVGGSpec


@dataclass(frozen=True)
class Twin:
    """One form of the deep net: its name, its branches by name, and its learning rate."""

    label: str
    branches: str
    rate: float


@dataclass(frozen=True)
class Twins:
    """A deep net for few images, trained with branches and without.

    Attributes:
        depths: Blocks of each stage behind the stem.
        widths: Channels of each stage.
        image_size: Side of the digits, in pixels.
        images: Training images.
        epochs: Of training, for every form.
        batch_size: Images of a training step.
        forms: What is trained; all become the same convolutions. Each learning rate did best of
            several (factors of two) on the validation images.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    image_size: int
    images: int
    epochs: int
    batch_size: int
    forms: tuple[Twin, ...]


@dataclass(frozen=True)
class Settings:
    """Sizes of the demo.

    Attributes:
        image_size: Side of the digits, in pixels; they are stored with 8.
        depths: Blocks of each stage of the RepVGG; the ResNet gets one residual block for two.
        widths: Channels of each stage, of both nets.
        epochs: Of training, for both nets.
        batch: Images of a call in the larger of the two timings.
        rounds: Interleaved rounds of each timing.
        reference_size: Side of the images on which MobileOne-S1 and ResNet-50 are timed; 0 for not
            at all.
        twins: The net that is trained with branches and without.
        seed: Decides the initial weights and the order of the images.
        warning: What a reader of the results must know.
    """

    image_size: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    epochs: int
    batch: int
    rounds: int
    reference_size: int
    twins: Twins
    seed: int = 0
    warning: str = ""


FULL = Settings(
    image_size=24,
    depths=(2, 4, 2),
    widths=(32, 64, 128),
    epochs=8,
    batch=32,
    rounds=15,
    reference_size=224,
    twins=Twins(
        depths=(11, 11, 11),
        widths=(16, 32, 64),
        image_size=12,
        images=400,
        epochs=10,
        batch_size=32,
        forms=(
            Twin("Plain", "neither", 0.00625),
            Twin("RepVGG's branches", "repvgg", 0.05),
        ),
    ),
)
"""One to three minutes on two cores."""

QUICK = Settings(
    image_size=12,
    depths=(2, 2),
    widths=(16, 32),
    epochs=2,
    batch=8,
    rounds=3,
    reference_size=0,
    twins=Twins(
        depths=(2, 2),
        widths=(8, 16),
        image_size=8,
        images=100,
        epochs=1,
        batch_size=32,
        forms=(Twin("Plain", "neither", 0.1), Twin("RepVGG's branches", "repvgg", 0.1)),
    ),
    warning="quick run, on nets too small for their accuracy and speed to mean anything",
)
"""Seconds: the same steps on nets too small for their accuracy and speed to say anything."""


def build_repvgg(settings: Settings, num_classes: int, channels: int) -> RepVGG:
    """A RepVGG for small images: a stem of stride 1, then stages of which all but one halve."""
    return _repvgg(settings.depths, settings.widths, "repvgg", num_classes, channels)


def build_deep(twins: Twins, branches: str, num_classes: int, channels: int) -> RepVGG:
    """A RepVGG of more layers, with the branches of that name."""
    return _repvgg(twins.depths, twins.widths, branches, num_classes, channels)


def _repvgg(
    depths: tuple[int, ...], widths: tuple[int, ...], branches: str, num_classes: int, channels: int
) -> RepVGG:
    spec = RepVGGSpec(
        depths=depths,
        widths=widths,
        stem_width=widths[0],
        stem_stride=1,
        strides=_strides(widths),
        branches=BRANCHES[branches],
    )
    return RepVGG(spec, num_classes=num_classes, in_channels=channels)


def build_resnet(settings: Settings, num_classes: int, channels: int) -> nn.Sequential:
    """A ResNet for small images (He et al., CVPR 2016, arXiv 1512.03385, section 4.2).

    The stem, the widths, the strides and the number of 3x3 convolutions are those of the RepVGG;
    the residual blocks are torchvision's.
    """
    resnet = require("torchvision.models.resnet", extra="train", purpose="Building the ResNet")
    first = settings.widths[0]
    stem = nn.Sequential(
        nn.Conv2d(channels, first, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=True),
    )
    inputs = (first, *settings.widths[:-1])
    stages = [
        _stage(resnet.BasicBlock, channels_in, width, depth // 2, stride)
        for channels_in, width, depth, stride in zip(
            inputs, settings.widths, settings.depths, _strides(settings.widths), strict=True
        )
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(settings.widths[-1], num_classes))
    return nn.Sequential(stem, *stages, *head)


def _strides(widths: Sequence[int]) -> tuple[int, ...]:
    return (1, *(2 for _ in pairwise(widths)))


def _stage(block: Any, channels_in: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Residual blocks, the first of which changes the width and the resolution."""
    shortcut = None
    if stride != 1 or channels_in != width:
        shortcut = nn.Sequential(
            nn.Conv2d(channels_in, width, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(width),
        )
    blocks = [block(channels_in, width, stride, shortcut)]
    blocks += [block(width, width) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
