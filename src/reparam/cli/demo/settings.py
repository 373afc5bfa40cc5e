"""How large the story is told."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Settings", "Twin", "Twins"]


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
