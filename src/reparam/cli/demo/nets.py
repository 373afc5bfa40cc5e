"""The nets that the demo trains: a multi-branch RepVGG, a ResNet of its size, and a deep one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import nn

from reparam._support.optional import require
from reparam.models import BRANCHES, RepVGG, RepVGGSpec

if TYPE_CHECKING:
    from reparam.cli.demo.settings import Settings, Twins

__all__ = ["build_deep", "build_repvgg", "build_resnet"]


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
