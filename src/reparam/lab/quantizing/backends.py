"""What a quantizer is given, what it returns, and what is said of it: a record for each engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion
    from reparam.lab.quantizing.layers import Layer
    from reparam.lab.quantizing.samples import Samples

__all__ = ["Backend", "Job", "Quantizer", "Written", "batch_of"]

_BATCH = 32


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be written.

    Attributes:
        conversion: The net with all remedies applied, one sample, and what is asked of the file.
        layers: Its layers by path, in running order.
        samples: What the engine's quantizer reads the ranges off.
        keep_float: Paths of layers that stay in float.
        weight_bits: 8, or 7 for processors whose sums of two products saturate in 16 bits.
    """

    conversion: Conversion
    layers: Mapping[str, Layer]
    samples: Samples
    keep_float: tuple[str, ...]
    weight_bits: int


@dataclass(frozen=True)
class Written:
    """What a quantizer wrote.

    Attributes:
        axes: For each input, the names of its variable dimensions by position.
        quantized: Paths of the layers whose weights the file holds as integers.
    """

    axes: Axes
    quantized: tuple[str, ...]


Quantizer: TypeAlias = Callable[[Job, "Path"], Written]
"""Writes a file at the path."""


@dataclass(frozen=True)
class Backend:
    """An engine that runs nets in integers, and the quantizer of its files.

    Attributes:
        engine: Name of the engine.
        suffix: Of its files.
        write: Its quantizer.
        packages: What is needed beside what the engine itself needs.
        weight_bits: What the weights may have.
        joins_taps: See :class:`~reparam.lab.quantizing.arithmetic.Arithmetic`.
    """

    engine: str
    suffix: str
    write: Quantizer
    packages: tuple[str, ...] = ()
    weight_bits: tuple[int, ...] = (8, 7)
    joins_taps: bool = False


def batch_of(axes: Axes) -> int:
    """Return how many samples may be run at once: one, where the batch is fixed."""
    return _BATCH if axes and 0 in axes[0] else 1
