"""What a net computes with some of its layers rounded, and what that needs: ranges, saturation."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from reparam.frontends.torch.copying import own_copy
from reparam.lab.hooking import hooked
from reparam.lab.quantizing.arithmetic import EIGHT_BITS, Arithmetic, Grid, round_weight
from reparam.lab.quantizing.layers import Layer, by_channel, layers_of, on_channels
from reparam.lab.quantizing.samples import samples_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reparam.lab.quantizing.samples import Samples, Source


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

    def joined(self, other: Traffic) -> Traffic:
        """Return the extremes of both."""
        channels = torch.maximum(self.channels, other.channels)
        return Traffic(min(self.low, other.low), max(self.high, other.high), channels)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Samples, and what the layers of a net read when it is run on them.

    Attributes:
        samples: The samples.
        traffic: What is read, by the path of the layer, in running order.
    """

    samples: Samples
    traffic: Mapping[str, Traffic]


def calibrated(model: nn.Module, source: Source | Calibrated, count: int, doing: str) -> Calibrated:
    """Read samples and run a net on them, as :func:`samples_for`; what is read already stays."""
    if isinstance(source, Calibrated):
        return source
    samples = samples_for(model, source, count, doing)
    return Calibrated(samples, observe(model, samples))


def observe(model: nn.Module, samples: Samples) -> dict[str, Traffic]:
    """Run a net on all samples and return what its layers read, in running order.

    Args:
        model: A module in eval mode; it is not changed.
        samples: What to run it on.

    Raises:
        InputError: The model runs no convolution and no linear layer.
    """
    layers = layers_of(model, samples.first(1))
    seen: dict[str, Traffic] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = by_channel(layer, inputs[0])
        now = Traffic(float(values.min()), float(values.max()), values.abs().amax(1))
        seen[name] = seen[name].joined(now) if name in seen else now

    with torch.no_grad(), hooked(layers, before=note):
        for batch in samples.batches():
            model(batch)
    return {name: seen[name] for name in layers}


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

        def saturate(name: str, layer: Layer, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
            return y - self._lost(layer, inputs[0], grids[name], exact[name])

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
        return lost * on_channels(layer, step.flatten() * grid.step, lost)


_LEAST, _MOST = -(2**15), 2**15 - 1
_LARGEST_INPUT = 255


def lost_to_saturation(
    layer: Layer, x: Tensor, zero: int, weight: Tensor, *, joins_taps: bool = False
) -> Tensor | None:
    r"""Return what is missing in each output of a layer, in units of one product.

    ``sum over pairs of (a - clip(a, -2^15, 2^15 - 1))`` with ``a = x_1 w_1 + x_2 w_2``, where the
    two belong to neighbouring input channels, the first of a group with the second, at one tap of
    the kernel. A depthwise layer has no pairs.

    Args:
        layer: The layer.
        x: Its input as numbers 0 to 255, a zero being ``zero``.
        zero: What padding is filled with.
        weight: Its weight as integers, shape ``(O, I / groups, ...)``.
        joins_taps: Whether all taps lie end to end, so that the odd channel of one is paired with
            the first of the next.

    Returns:
        The loss, of the shape of the layer's output; ``None`` where no pair can saturate.
    """
    outputs, width, *kernel = weight.shape
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    if width == 1 and groups == outputs > 1:
        return None
    pairs = _pairs(math.prod(kernel), width, joins_taps=joins_taps)
    first, second = weight.movedim(1, -1).flatten(1)[:, pairs].unbind(2)
    risky = _can_saturate(first, second)
    if not bool(risky.any()):
        return None
    windows = _windows(layer, x, zero)
    lost = windows.new_zeros((outputs, *windows.shape[1 + len(kernel) :]))
    for output, found in enumerate(risky):
        start = output // (outputs // groups) * width
        total = windows.new_zeros(())
        for position, weights in zip(pairs[found].T, (first, second), strict=True):
            taps = torch.unravel_index(position // width, kernel) if kernel else ()
            values = windows[(start + position % width, *taps)]
            factors = weights[output, found].view(-1, *[1] * (values.dim() - 1))
            total = total + values * factors
        lost[output] = (total - total.clamp(_LEAST, _MOST)).sum(0)
    return lost.movedim(0, -1 if isinstance(layer, nn.Linear) else 1)


def _pairs(taps: int, width: int, *, joins_taps: bool) -> Tensor:
    """Return which products are added first, as positions in a row of taps times channels."""
    positions = torch.arange(taps * width)
    rows = positions.view(1, -1) if joins_taps else positions.view(taps, width)
    return rows[:, : rows.shape[1] // 2 * 2].reshape(-1, 2)


def _can_saturate(first: Tensor, second: Tensor) -> Tensor:
    """Say of which pairs of weights there are inputs whose products leave 16 bits."""
    above = first.clamp(min=0) + second.clamp(min=0)
    below = first.clamp(max=0) + second.clamp(max=0)
    return (_LARGEST_INPUT * above > _MOST) | (_LARGEST_INPUT * below < _LEAST)


def _windows(layer: Layer, x: Tensor, zero: int) -> Tensor:
    """Return all that a layer reads, shape ``(I, *kernel, batch, *positions)``, without a copy."""
    if isinstance(layer, nn.Linear):
        return x.movedim(-1, 0)
    padding = layer._reversed_padding_repeated_twice  # noqa: SLF001 - of 'same', too
    if layer.padding_mode == "zeros":
        x = functional.pad(x, padding, value=float(zero))
    else:
        x = functional.pad(x, padding, mode=layer.padding_mode)
    sizes = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
    for axis, (size, dilation, stride) in enumerate(sizes, start=2):
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    spatial = len(layer.kernel_size)
    return x.movedim((1, *range(-spatial, 0)), tuple(range(spatial + 1)))
