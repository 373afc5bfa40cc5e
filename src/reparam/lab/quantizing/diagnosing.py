"""Why a net loses accuracy in eight bits: ranges and rounding errors, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reparam.lab.hooking import hooked
from reparam.lab.quantizing.arithmetic import EIGHT_BITS, Arithmetic, decibels, round_weight
from reparam.lab.quantizing.layers import layer_label, spread
from reparam.lab.quantizing.samples import Samples, Source
from reparam.lab.quantizing.simulation import Calibrated, Simulation, Traffic, calibrated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_IMAGES = 64
"""Samples on which the net is run once for each layer."""


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer in eight bits, all other layers in float.

    Ratios are signal to quantization noise in decibels: 6 dB are one bit, 20 dB an error of a
    tenth. A spread is how many times the widest channel exceeds the median one.

    Attributes:
        name: Path of the layer.
        what: What it is.
        weight_low: Smallest weight of the (equivalent) kernel.
        weight_high: Largest weight.
        weight_spread: Spread of the largest absolute weights of the output channels.
        input_low: Smallest value that the layer reads.
        input_high: Largest value that it reads.
        input_spread: Spread of the largest absolute values of its input channels, which share one
            step.
        weight_db: Ratio of the rounded weights.
        input_db: Ratio of the rounded input.
        output_db: Ratio at the output of the net if this layer alone is rounded.
        flips: Share of samples, 0 to 1, whose top-1 class changes then; ``None`` where the output
            is not (samples, classes).
    """

    name: str
    what: str
    weight_low: float
    weight_high: float
    weight_spread: float
    input_low: float
    input_high: float
    input_spread: float
    weight_db: float
    input_db: float
    output_db: float
    flips: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as a dictionary that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Diagnosis:
    """All layers of a net in eight bits, by simulation in PyTorch.

    Attributes:
        layers: The layers in running order.
        output_db: Ratio at the output of the net with all layers rounded at once.
        flips: Share of samples whose top-1 class changes then; ``None`` where the output is not
            (samples, classes).
        samples: Number of samples on which outputs were compared.
    """

    layers: tuple[LayerDiagnosis, ...]
    output_db: float
    flips: float | None
    samples: int

    def worst(self, count: int | None = None) -> tuple[LayerDiagnosis, ...]:
        """Return the layers that hurt the output most, worst first."""
        ordered = sorted(self.layers, key=lambda layer: layer.output_db)
        return tuple(ordered if count is None else ordered[:count])

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as a dictionary that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a table for a person, worst layers first."""
        head = ("layer", "what", "weights", "spread", "input", "spread", "w dB", "in dB", "out dB")
        rows = [head, *(_row(layer) for layer in self.worst())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.append(f"All layers at once: {self.output_db:.1f} dB at the output.")
        return "\n".join(lines)


def _row(layer: LayerDiagnosis) -> tuple[str, ...]:
    return (
        layer.name,
        layer.what,
        f"{layer.weight_low:.3g} to {layer.weight_high:.3g}",
        f"{layer.weight_spread:.1f}x",
        f"{layer.input_low:.3g} to {layer.input_high:.3g}",
        f"{layer.input_spread:.1f}x",
        f"{layer.weight_db:.1f}",
        f"{layer.input_db:.1f}",
        f"{layer.output_db:.1f}",
    )


def diagnose(
    model: nn.Module,
    calibration: Source | Calibrated,
    *,
    samples: int = 300,
    arithmetic: Arithmetic = EIGHT_BITS,
    progress: Callable[[int, int, str], object] | None = None,
) -> Diagnosis:
    r"""Round one layer after the other to eight bits and see what that does to the output.

    Each layer is judged by :math:`10 \log_{10} (\sum y^2 / \sum (y - y_q)^2)` at the output ``y``
    of the net. The arithmetic is that of :mod:`reparam.lab.quantizing.arithmetic`, run in PyTorch,
    so it does not depend on an engine, whose own choice of ranges can differ a little.

    Args:
        model: A net of one input and one output, in eval mode; it is not changed.
        calibration: The data, see :data:`reparam.lab.quantizing.Source`.
        samples: How many samples the ranges are read off. Outputs are compared on 64 of them.
        arithmetic: Bits of the weights, and whether sums saturate as on x86 without VNNI.
        progress: Called with (layers done, layers in all, the layer that is next).

    Raises:
        DataError: There is no calibration data, or it is of no use.
        InputError: The net does not run on it, or has no layer to round.
        TrainingModeError: The net is in training mode.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    >>> found = diagnose(net, torch.randn(16, 3, 8, 8))
    >>> [layer.name for layer in found.layers], found.output_db > 20
    (['0', '2'], True)
    """
    seen = calibrated(model, calibration, samples, "diagnosing")
    held, traffic = seen.samples, seen.traffic
    few = Samples(held.name, held.first(_IMAGES))
    simulation = Simulation(model, traffic, arithmetic)
    exact = _run(simulation.model, few)
    input_db = _input_ratios(simulation, traffic, few)
    found = []
    for done, (name, layer) in enumerate(simulation.layers.items()):
        if progress is not None:
            progress(done, len(simulation.layers), name)
        with simulation.rounded(name) as model_with_one:
            rounded = _run(model_with_one, few)
        weight, read = layer.weight.detach(), traffic[name]
        found.append(
            LayerDiagnosis(
                name=name,
                what=layer_label(layer),
                weight_low=float(weight.min()),
                weight_high=float(weight.max()),
                weight_spread=spread(weight.flatten(1).abs().amax(1)),
                input_low=read.low,
                input_high=read.high,
                input_spread=spread(read.channels),
                weight_db=decibels(weight, round_weight(weight, arithmetic)),
                input_db=input_db[name],
                output_db=decibels(exact, rounded),
                flips=_flips(exact, rounded),
            )
        )
    with simulation.rounded(*simulation.layers) as all_rounded:
        rounded = _run(all_rounded, few)
    return Diagnosis(tuple(found), decibels(exact, rounded), _flips(exact, rounded), len(few))


@torch.no_grad()
def _run(model: nn.Module, samples: Samples) -> Tensor:
    return torch.cat([model(batch) for batch in samples.batches()])


def _input_ratios(
    simulation: Simulation, traffic: Mapping[str, Traffic], few: Samples
) -> dict[str, float]:
    """Return the ratio of every layer's rounded input, the net itself being in float."""
    found: dict[str, float] = {}

    def note(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[name] = decibels(inputs[0], traffic[name].grid.round(inputs[0]))

    with torch.no_grad(), hooked(simulation.layers, before=note):
        simulation.model(few.inputs)
    return found


def _flips(exact: Tensor, rounded: Tensor) -> float | None:
    if exact.dim() != 2 or exact.shape[1] < 2:
        return None
    return float((exact.argmax(1) != rounded.argmax(1)).double().mean())
