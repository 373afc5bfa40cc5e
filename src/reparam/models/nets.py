"""The networks: a stem, stages of blocks, and a linear classifier on the pooled features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from reparam.errors import InputError
from reparam.models.blocks import Block

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.models.specs import BlockSpec, MobileOneSpec, NetSpec, RepVGGSpec


class StagedNet(nn.Module):
    """A stem, stages of blocks, global average pooling and a linear classifier.

    The weights begin as PyTorch initialises convolutions, linear maps and BN, which is what the
    authors' code of both families does.

    Args:
        spec: The network.
        num_classes: Number of classes; 0 for the pooled features instead of logits.
        in_channels: Channels of the images.

    Attributes:
        spec: The network, as it was given.
        stem: The first block.
        stages: The stages, each a sequence of blocks.
        head: The classifier.
    """

    def __init__(self, spec: NetSpec, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        if num_classes < 0:
            raise InputError(f"num_classes is {num_classes} and must be 0 or more")
        (stem,), *stages = spec.stages(in_channels)
        self.spec = spec
        self.stem = Block(stem)
        self.stages = nn.Sequential(*map(_stage, stages))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.head = nn.Linear(spec.widths[-1], num_classes) if num_classes else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """Map images to the output of the last stage, ``(N, widths[-1], H', W')``."""
        y: Tensor = self.stages(self.stem(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        logits: Tensor = self.head(self.flatten(self.pool(self.features(x))))
        return logits


class RepVGG(StagedNet):
    """RepVGG (Ding et al., CVPR 2021, arXiv 2101.03697): a VGG-like net of multi-branch 3x3 blocks.

    A small one for images of 8 pixels, and its deploy form:

    >>> from reparam.models import RepVGGSpec
    >>> spec = RepVGGSpec(depths=(1, 2), widths=(8, 16), stem_width=8, stem_stride=1)
    >>> train, deploy = RepVGG(spec, num_classes=10), RepVGG(spec.deploy(), num_classes=10)
    >>> sum(p.numel() for p in train.parameters()) > sum(p.numel() for p in deploy.parameters())
    True
    """

    def __init__(self, spec: RepVGGSpec, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(spec, num_classes, in_channels)


class MobileOne(StagedNet):
    """MobileOne (Vasu et al., CVPR 2023, arXiv 2206.04040): depthwise and 1x1 blocks in turn."""

    def __init__(self, spec: MobileOneSpec, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(spec, num_classes, in_channels)


def _stage(blocks: tuple[BlockSpec, ...]) -> nn.Sequential:
    return nn.Sequential(*map(Block, blocks))
