"""What a block computes, as steps from one input to one output."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from reparam.algebra import Geometry


class Kind(enum.Enum):
    """What a step does."""

    INPUT = "input"
    LAYER = "layer"
    """A convolution or a linear layer; operands are its weight and bias."""
    FIXED = "fixed"
    """Average pooling or padding: the same number at every tap."""
    NORM = "norm"
    """Batch normalisation; its operand is the module."""
    SUM = "sum"
    """The sum of its inputs, each times its coefficient."""
    SCALE = "scale"
    """A product with one number for each channel, its operand."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a block.

    Attributes:
        kind: What it does.
        geometry: The convolution of the block's input that its value is.
        inputs: The steps it reads, by position.
        layer: The convolution that it is by itself, of a LAYER or a FIXED step.
        operands: Positions among the operands of the block; None for a bias that is not there.
        coefficients: One for each input of a SUM.
        value: The number at every tap of a FIXED step.
        level: How many norms lie between the block's input and its value, itself included.

    """

    kind: Kind
    geometry: Geometry
    inputs: tuple[int, ...] = ()
    layer: Geometry | None = None
    operands: tuple[int | None, ...] = ()
    coefficients: tuple[float, ...] = ()
    value: float = 1.0
    level: int = 0
