"""Mixup and CutMix of a batch on the device it is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from reparam._support.optional import require

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.lab.data import Augment

Mixing: TypeAlias = "Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]"
"""From images (B, C, H, W) and labels (B,) to images and targets, (B, classes) where mixed."""


def mixing_of(augment: Augment, num_classes: int) -> Mixing:
    """``x = m x_i + (1 - m) x_j`` with targets mixed alike (mixup), or boxes exchanged (CutMix).

    With both, each batch gets one of the two by a coin toss. Draws from the global random state.
    Zhang et al. 2018, section 2; Yun et al. 2019, section 3.
    """
    asked = {"MixUp": augment.mixup, "CutMix": augment.cutmix}
    ways: list[Any] = []
    for name, alpha in asked.items():
        if alpha > 0:
            transforms = require(
                "torchvision.transforms.v2", extra="train", purpose="Mixup and CutMix"
            )
            ways.append(getattr(transforms, name)(alpha=alpha, num_classes=num_classes))

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not ways:
            return images, labels
        mixed, targets = ways[int(torch.randint(len(ways), ()))](images, labels)
        return mixed, targets

    return mix
