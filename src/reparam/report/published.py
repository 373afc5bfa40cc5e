"""Accuracies that papers report: published, never measured here, and labelled so on every page."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INPUT_SIZE", "REPARAMETERIZED_FAMILIES", "Published", "published"]

INPUT_SIZE = 224
"""Side in pixels of the images on which the accuracies of the table were found, but for FastViT."""

REPARAMETERIZED_FAMILIES = frozenset({"FastViT", "MobileOne", "RepGhost", "RepVGG", "RepViT"})
"""Families that are trained with branches which fold away when they are deployed."""

_TABLE_4 = "RepVGG, arXiv 2101.03697, table 4"
_TABLE_5 = "RepVGG, arXiv 2101.03697, table 5"
_TORCHVISION = "torchvision's weights IMAGENET1K_V1, by their metadata"
_SHORT = "100 to 120 epochs, simple augmentation"
_LONG = "300 epochs, the authors' recipe"


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


def _repvgg(suffix: str, top1: float) -> Published:
    return Published(f"RepVGG-{suffix}", "RepVGG", top1, _TABLE_4)


def _repvgg_longer(suffix: str, top1: float) -> Published:
    recipe = "200 epochs, stronger augmentation"
    return Published(f"RepVGG-{suffix}", "RepVGG", top1, _TABLE_5, recipe)


def _mobileone(suffix: str, top1: float) -> Published:
    return Published(f"MobileOne-{suffix}", "MobileOne", top1, "MobileOne, arXiv 2206.04040", _LONG)


def _fastvit(suffix: str, top1: float) -> Published:
    source = "FastViT, arXiv 2303.14189, the authors' released weights"
    return Published(f"FastViT-{suffix}", "FastViT", top1, source, f"{_LONG}, 256 px", size=256)


def _repvit(suffix: str, top1: float) -> Published:
    source = "RepViT, arXiv 2307.09283, the authors' released weights"
    return Published(f"RepViT-{suffix}", "RepViT", top1, source, f"{_LONG}, distilled")


def _repghost(width: str, top1: float) -> Published:
    source = "RepGhost, arXiv 2211.06088, the authors' released weights"
    return Published(f"RepGhost-{width}x", "RepGhost", top1, source, "the authors' longer recipe")


def _resnet(depth: int, top1: float) -> Published:
    return Published(f"ResNet-{depth}", "ResNet", top1, _TABLE_4)


def _regnet(suffix: str, top1: float, source: str = _TORCHVISION) -> Published:
    return Published(f"RegNet{suffix}", "RegNet", top1, source)


_OWN = {
    "repvgg_a0": _repvgg("A0", 72.41),
    "repvgg_a1": _repvgg("A1", 74.46),
    "repvgg_a2": _repvgg("A2", 76.48),
    "repvgg_b0": _repvgg("B0", 75.14),
    "repvgg_b1": _repvgg("B1", 78.37),
    "repvgg_b1g2": _repvgg("B1g2", 77.78),
    "repvgg_b1g4": _repvgg("B1g4", 77.58),
    "repvgg_b2": _repvgg("B2", 78.78),
    "repvgg_b2g4": _repvgg_longer("B2g4", 79.38),
    "repvgg_b3": _repvgg_longer("B3", 80.52),
    "repvgg_b3g4": _repvgg_longer("B3g4", 80.21),
    "mobileone_s0": _mobileone("S0", 71.4),
    "mobileone_s1": _mobileone("S1", 75.9),
    "mobileone_s2": _mobileone("S2", 77.4),
    "mobileone_s3": _mobileone("S3", 78.1),
    "mobileone_s4": _mobileone("S4", 79.4),
}
_TORCHVISION_OR_TIMM = {
    "resnet101": _resnet(101, 77.21),
    "resnet152": _resnet(152, 77.78),
    "resnet18": _resnet(18, 71.16),
    "resnet34": _resnet(34, 74.17),
    "resnet50": _resnet(50, 76.31),
    "resnext50_32x4d": Published("ResNeXt-50", "ResNeXt", 77.46, _TABLE_4),
    "vgg16": Published("VGG-16", "VGG", 72.21, _TABLE_4),
    "efficientnet_b0": Published("EfficientNet-B0", "EfficientNet", 75.11, _TABLE_4),
}
_TORCHVISION_ONLY = {
    "regnet_x_3_2gf": _regnet("X-3.2GF", 77.98, _TABLE_4),
    "regnet_y_400mf": _regnet("Y-400MF", 74.05),
    "regnet_y_800mf": _regnet("Y-800MF", 76.42),
    "regnet_y_1_6gf": _regnet("Y-1.6GF", 77.95),
    "mobilenet_v3_large": Published(
        "MobileNetV3-L", "MobileNet", 74.04, _TORCHVISION, "600 epochs, stronger augmentation"
    ),
}
_TIMM_ONLY = {
    "fastvit_t8": _fastvit("T8", 76.2),
    "fastvit_t12": _fastvit("T12", 79.3),
    "fastvit_s12": _fastvit("S12", 79.9),
    "fastvit_sa12": _fastvit("SA12", 80.9),
    "repvit_m0_9": _repvit("M0.9", 78.7),
    "repvit_m1_0": _repvit("M1.0", 80.0),
    "repvit_m1_1": _repvit("M1.1", 80.7),
    "repvit_m1_5": _repvit("M1.5", 82.3),
    "repghostnet_080": _repghost("0.8", 72.24),
    "repghostnet_100": _repghost("1.0", 74.22),
    "repghostnet_130": _repghost("1.3", 76.37),
    "repghostnet_150": _repghost("1.5", 77.45),
    "repghostnet_200": _repghost("2.0", 78.81),
    "resnet50.a1_in1k": Published(
        "ResNet-50 (A1)",
        "ResNet",
        80.4,
        "ResNet strikes back, arXiv 2110.00476",
        "600 epochs, stronger augmentation",
    ),
}
_TABLES = {
    "": _OWN,
    "torchvision": _TORCHVISION_OR_TIMM | _TORCHVISION_ONLY,
    "timm": _OWN | _TORCHVISION_OR_TIMM | _TIMM_ONLY,
}


def published(model: str) -> Published | None:
    """What is published of a model called as on the command line, or None.

    >>> published("torchvision:resnet18").top1
    71.16
    >>> published("repvgg_a0").label
    'RepVGG-A0'
    >>> published("timm:resnet50.a1_in1k").recipe  # one net, trained in another way
    '600 epochs, stronger augmentation'
    """
    source, _, name = model.rpartition(":")
    return _TABLES.get(source, {}).get(name)
