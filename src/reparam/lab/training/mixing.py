"""Mixup and CutMix of a batch on the device it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from reparam._support.optional import require

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.lab.data import Augment

__all__ = ["Mixing"]


class Mixing:
    """``x = m x_i + (1 - m) x_j`` with targets mixed alike (mixup), or boxes exchanged (CutMix).

    With both, each batch gets one of the two by a coin toss. Draws from the global random state.
    Zhang et al. 2018, section 2; Yun et al. 2019, section 3.
    """

    def __init__(self, augment: Augment, num_classes: int) -> None:
        """Prepare what `augment` asks for; nothing, where it asks for neither."""
        self._ways: list[Any] = []
        if augment.mixup > 0 or augment.cutmix > 0:
            transforms = require(
                "torchvision.transforms.v2", extra="train", purpose="Mixup and CutMix"
            )
            if augment.mixup > 0:
                self._ways.append(transforms.MixUp(alpha=augment.mixup, num_classes=num_classes))
            if augment.cutmix > 0:
                self._ways.append(transforms.CutMix(alpha=augment.cutmix, num_classes=num_classes))

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) and targets: (B,) as they are, or mixed, (B, classes)."""
        if not self._ways:
            return images, labels
        way = self._ways[int(torch.randint(len(self._ways), ()))]
        mixed, targets = way(images, labels)
        return mixed, targets
