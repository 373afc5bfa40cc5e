"""What a net computes with some of its layers rounded, and the ranges that this needs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reparam.frontends.torch.copying import own_copy
from reparam.lab.quantizing.arithmetic import EIGHT_BITS, Arithmetic, Grid, round_weight
from reparam.lab.quantizing.layers import Layer, by_channel, hooked, layers_of
from reparam.lab.quantizing.saturating import lost_to_saturation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reparam.lab.quantizing.samples import Samples

__all__ = ["Simulation", "Traffic", "observe"]


@dataclass(frozen=True, eq=False)
class Traffic:
    """What a layer reads in float, over all samples.

    Attributes:
        low: Smallest value.
        high: Largest value.
        channels: Largest absolute value of every channel, shape ``(I,)``.
    """

    low: float
    high: float
    channels: Tensor

    @property
    def grid(self) -> Grid:
        """The values that the input may take in eight bits."""
        return Grid.over(self.low, self.high)


class _Meter:
    """Keeps the extremes of what one layer reads."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._channels: list[Tensor] = []

    def add(self, layer: nn.Module, x: Tensor) -> None:
        values = by_channel(layer, x)
        self._low.append(float(values.min()))
        self._high.append(float(values.max()))
        self._channels.append(values.abs().amax(1))

    def read(self) -> Traffic:
        channels = torch.stack(self._channels).amax(0)
        return Traffic(min(self._low), max(self._high), channels)


def observe(model: nn.Module, samples: Samples) -> dict[str, Traffic]:
    """Run a net on all samples and return what its layers read, in running order.

    Args:
        model: A module in eval mode; it is not changed.
        samples: What to run it on.

    Raises:
        InputError: The model runs no convolution and no linear layer.
    """
    layers = layers_of(model, samples.first(1))
    meters = {name: _Meter() for name in layers}

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        meters[name].add(layer, inputs[0])

    with torch.no_grad(), hooked(layers, before=note):
        for batch in samples.batches():
            model(batch)
    return {name: meter.read() for name, meter in meters.items()}


class Simulation:
    """A copy of a net of which any layers can be rounded to eight bits, weights and inputs.

    Args:
        model: A module in eval mode; it is not changed.
        traffic: What its layers read, from :func:`observe`.
        arithmetic: How products are rounded and added.

    Attributes:
        model: The copy.
        layers: Its layers by path, in running order.
    """

    def __init__(
        self,
        model: nn.Module,
        traffic: Mapping[str, Traffic],
        arithmetic: Arithmetic = EIGHT_BITS,
    ) -> None:
        self.model = own_copy(model)
        self.layers: dict[str, Layer] = {
            name: self.model.get_submodule(name)  # type: ignore[misc] # observed as layers
            for name in traffic
        }
        self._traffic = traffic
        self._arithmetic = arithmetic

    @contextmanager
    def rounded(self, *names: str) -> Iterator[nn.Module]:
        """Round these layers while the block lasts; yields the model."""
        chosen = {name: self.layers[name] for name in names}
        exact = {name: layer.weight.data for name, layer in chosen.items()}
        grids = {name: self._traffic[name].grid for name in names}

        def round_input(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (grids[name].round(inputs[0]),)

        def saturate(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return y - self._lost(layer, x, grids[name], exact[name])  # type: ignore[arg-type] # a layer

        after = saturate if self._arithmetic.saturates else None
        try:
            for layer in chosen.values():
                layer.weight.data = round_weight(layer.weight, self._arithmetic)
            with torch.no_grad(), hooked(chosen, before=round_input, after=after):
                yield self.model
        finally:
            for name, layer in chosen.items():
                layer.weight.data = exact[name]

    def _lost(self, layer: Layer, x: Tensor, grid: Grid, weight: Tensor) -> Tensor | float:
        """Return what saturation takes off the output of a rounded layer."""
        step = self._arithmetic.steps(weight)
        lost = lost_to_saturation(
            layer,
            grid.number(x),
            grid.zero,
            (weight / step).round(),
            joins_taps=self._arithmetic.joins_taps,
        )
        if lost is None:
            return 0.0
        axis = lost.dim() - 1 if isinstance(layer, nn.Linear) else 1
        scale = step.flatten() * grid.step
        return lost * scale.view(-1, *[1] * (lost.dim() - 1 - axis))
