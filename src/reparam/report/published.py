"""Accuracies that papers report: published, never measured here, and labelled so on every page."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INPUT_SIZE", "SINGLE_PATH_FAMILIES", "Published", "published"]

INPUT_SIZE = 224
"""Side in pixels of the images on which all accuracies of the table were found."""

SINGLE_PATH_FAMILIES = frozenset({"RepVGG", "MobileOne"})
"""Families whose deploy form is a single path."""

_TABLE_4 = "RepVGG, arXiv 2101.03697, table 4: 120 epochs, simple augmentation"
_TABLE_5 = "RepVGG, arXiv 2101.03697, table 5: 200 epochs, strong augmentation"
_MOBILEONE = "MobileOne, arXiv 2206.04040: its own recipe"


@dataclass(frozen=True)
class Published:
    """What a paper says about a model.

    Attributes:
        label: The model's name in the paper.
        family: The family it belongs to.
        top1: ImageNet top-1 accuracy in percent, one crop of 224 pixels.
        source: Paper, table, and how it was trained.
    """

    label: str
    family: str
    top1: float
    source: str


def _repvgg(suffix: str, top1: float, source: str = _TABLE_4) -> Published:
    return Published(f"RepVGG-{suffix}", "RepVGG", top1, source)


def _mobileone(suffix: str, top1: float) -> Published:
    return Published(f"MobileOne-{suffix}", "MobileOne", top1, _MOBILEONE)


def _resnet(depth: int, top1: float) -> Published:
    return Published(f"ResNet-{depth}", "ResNet", top1, _TABLE_4)


_OWN = {
    "repvgg_a0": _repvgg("A0", 72.41),
    "repvgg_a1": _repvgg("A1", 74.46),
    "repvgg_a2": _repvgg("A2", 76.48),
    "repvgg_b0": _repvgg("B0", 75.14),
    "repvgg_b1": _repvgg("B1", 78.37),
    "repvgg_b1g2": _repvgg("B1g2", 77.78),
    "repvgg_b1g4": _repvgg("B1g4", 77.58),
    "repvgg_b2": _repvgg("B2", 78.78),
    "repvgg_b2g4": _repvgg("B2g4", 79.38, _TABLE_5),
    "repvgg_b3": _repvgg("B3", 80.52, _TABLE_5),
    "repvgg_b3g4": _repvgg("B3g4", 80.21, _TABLE_5),
    "mobileone_s0": _mobileone("S0", 71.4),
    "mobileone_s1": _mobileone("S1", 75.9),
    "mobileone_s2": _mobileone("S2", 77.4),
    "mobileone_s3": _mobileone("S3", 78.1),
    "mobileone_s4": _mobileone("S4", 79.4),
}
_OTHERS = {
    "efficientnet_b0": Published("EfficientNet-B0", "EfficientNet", 75.11, _TABLE_4),
    "resnet101": _resnet(101, 77.21),
    "resnet152": _resnet(152, 77.78),
    "resnet18": _resnet(18, 71.16),
    "resnet34": _resnet(34, 74.17),
    "resnet50": _resnet(50, 76.31),
    "resnext50_32x4d": Published("ResNeXt-50", "ResNeXt", 77.46, _TABLE_4),
    "vgg16": Published("VGG-16", "VGG", 72.21, _TABLE_4),
}


def published(model: str) -> Published | None:
    """What is published of a model called as on the command line, or None.

    >>> published("torchvision:resnet18").top1
    71.16
    >>> published("repvgg_a0").label
    'RepVGG-A0'
    >>> published("timm:resnet18.a1_in1k") is None  # trained in another way
    True
    """
    source, colon, name = model.rpartition(":")
    if not colon:
        return _OWN.get(model)
    if source == "torchvision":
        return _OTHERS.get(name)
    return (_OWN | _OTHERS).get(name) if source == "timm" else None
