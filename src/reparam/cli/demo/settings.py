"""How large the story is told."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Settings"]


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
    warning="quick run, on nets too small for their accuracy and speed to mean anything",
)
"""Seconds: the same steps on nets too small for their accuracy and speed to say anything."""
