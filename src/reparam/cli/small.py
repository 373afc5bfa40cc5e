"""A RepVGG for images of 8 to 64 pixels, which ``reparam train`` takes where no model is named."""

from __future__ import annotations

from reparam.models import RepVGG, RepVGGSpec

NAME = "reparam.cli.small:repvgg"
"""How it is called on the command line."""


def repvgg(num_classes: int = 10) -> RepVGG:
    """A stem of stride 1, then three stages of which two halve: 371 k parameters when fused.

    >>> net = repvgg(num_classes=3)
    >>> net.spec.widths
    (32, 64, 128)
    """
    spec = RepVGGSpec(
        depths=(2, 4, 2), widths=(32, 64, 128), stem_width=32, stem_stride=1, strides=(1, 2, 2)
    )
    return RepVGG(spec, num_classes=num_classes)
