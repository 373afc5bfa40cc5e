"""Accuracies that papers report: published, never measured here, and labelled so on every page."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

INPUT_SIZE = 224
"""Side in pixels of the images on which the accuracies of the table were found, but for FastViT."""

REPARAMETERIZED_FAMILIES = frozenset({"FastViT", "MobileOne", "RepGhost", "RepVGG", "RepViT"})
"""Families that are trained with branches which fold away when they are deployed."""

_SHORT = "100 to 120 epochs, simple augmentation"


@dataclass(frozen=True)
class Published:
    """What a paper says about a model.

    Attributes:
        label: The model's name in the paper.
        family: The family it belongs to.
        top1: ImageNet top-1 accuracy in percent, one crop of `size` pixels.
        source: Paper and table, or whose weights.
        recipe: How it was trained.
        size: Side in pixels of the images.
    """

    label: str
    family: str
    top1: float
    source: str
    recipe: str = _SHORT
    size: int = INPUT_SIZE

    @property
    def longer(self) -> bool:
        """Whether it was trained longer, with stronger augmentation, or by a teacher."""
        return self.recipe != _SHORT


def published(model: str) -> Published | None:
    """What is published of a model called as on the command line, or None.

    >>> published("torchvision:resnet18").top1
    71.16
    >>> published("repvgg_a0").label
    'RepVGG-A0'
    >>> published("timm:resnet50.a1_in1k").recipe  # one net, trained in another way
    '600 epochs, stronger augmentation'
    """
    return _tables().get(model)


@cache
def _tables() -> dict[str, Published]:
    return dict(_read())


def _read() -> Iterator[tuple[str, Published]]:
    asset = resources.files("reparam.report") / "assets" / "published.toml"
    for table in tomllib.loads(asset.read_text(encoding="utf-8"))["table"]:
        shared = {name: table[name] for name in ("source", "recipe", "size") if name in table}
        for name, row in table["names"].items():
            label, top1, family = (*row, table.get("family"))[:3]
            known = Published(label, family, top1, **shared)
            yield from ((f"{prefix}{name}", known) for prefix in table["prefixes"])
