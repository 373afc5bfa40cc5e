"""What a quantizer is given, what it returns, and which operation of its graph is which layer."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion
    from reparam.lab.quantizing.layers import Layer
    from reparam.lab.quantizing.samples import Samples

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
        tool: What its quantizer is built on, for messages.
        write: Its quantizer.
        packages: What is needed beside what the engine itself needs.
        weight_bits: What the weights may have.
        joins_taps: See :class:`~reparam.lab.quantizing.arithmetic.Arithmetic`.
    """

    engine: str
    suffix: str
    tool: str
    write: Quantizer
    packages: tuple[str, ...] = ()
    weight_bits: tuple[int, ...] = (8, 7)
    joins_taps: bool = False


def batch_of(axes: Axes) -> int:
    """Return how many samples may be run at once: one, where the batch is fixed."""
    return _BATCH if axes and 0 in axes[0] else 1


def operations_of(
    layers: Mapping[str, Layer], operations: Iterable[tuple[str, Any]], wanted: Collection[str]
) -> dict[str, str]:
    """Return the names of a graph's operations by the layers that they compute.

    Exporters rename layers, and reshape the weights of grouped convolutions or transpose those of
    linear maps, but do not change their float32 numbers or the order of these. Of layers with equal
    weights, the first that the graph has is the first that runs.

    Args:
        layers: Layers by path, in running order.
        operations: Names of operations that may be layers, with their weights as arrays.
        wanted: Layers that have to be found.

    Raises:
        ExportError: One of these is not in the graph.
    """
    holders: dict[str, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        weight = layer.weight.detach().to(torch.float32).cpu()
        stored = [weight, weight.t()] if isinstance(layer, nn.Linear) else [weight]
        for key in {_digest(each.contiguous().numpy()) for each in stored}:
            holders[key].append(name)
    found: dict[str, str] = {}
    for operation, numbers in operations:
        for name in [each for each in holders[_digest(numbers)] if each not in found][:1]:
            found[name] = operation
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ExportError(
            f"the exported graph has no operation with the weights of {', '.join(missing)}, so it "
            "cannot be kept in float; nothing was written"
        )
    return found


def _digest(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
