"""Biases that give the channels of a rounded net the means they have in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reparam.frontends.torch.copying import own_copy
from reparam.lab.hooking import hooked
from reparam.lab.quantizing.arithmetic import EIGHT_BITS, Arithmetic
from reparam.lab.quantizing.layers import by_channel, on_channels
from reparam.lab.quantizing.samples import Source
from reparam.lab.quantizing.simulation import Calibrated, Simulation, calibrated

if TYPE_CHECKING:
    from collections.abc import Collection

_IMAGES = 128
"""Samples that are run at once, since a layer's correction changes what the next one reads."""


def correct_biases(
    model: nn.Module,
    calibration: Source | Calibrated,
    *,
    samples: int = 300,
    keep_float: Collection[str] = (),
    arithmetic: Arithmetic = EIGHT_BITS,
) -> nn.Module:
    r"""Return a copy of a net whose biases make up for what rounding adds to the means.

    Rounding the weights of a layer, and the input that it reads, shifts the mean of its output
    channels; a batch norm behind it would have absorbed that, and after fusing there is none.
    Layer by layer, with all layers before it rounded and corrected,

    .. math:: b \leftarrow b - (E[\hat W * \hat x + b] - E[W * x + b])

    with both means over samples and positions (Nagel et al., ICCV 2019, arXiv 1906.04721, section
    4.2, with measured instead of modelled means). The copy is meant to be quantized: in float it
    computes something else than ``model``. A layer without a bias gets one.

    Args:
        model: A net in eval mode; it is not changed.
        calibration: What ranges and means are read off, see :data:`reparam.lab.quantizing.Source`.
        samples: How many samples the ranges are read off; the means, of 128 of them.
        keep_float: Paths of layers that will not be quantized.
        arithmetic: Bits of the weights, and whether sums saturate as on x86 without VNNI.

    Raises:
        DataError: There is no calibration data.
        InputError: The net does not run on it.
        TrainingModeError: The net is in training mode.
    """
    seen = calibrated(model, calibration, samples, "correcting biases")
    few, traffic = seen.samples.first(_IMAGES), seen.traffic
    exact = _means(model, few, traffic)
    simulation = Simulation(model, traffic, arithmetic)
    corrected = own_copy(model)
    shifts: dict[str, Tensor] = {}

    def correct(name: str, layer: nn.Module, _: object, y: Tensor) -> Tensor:
        # A layer that runs several times is corrected where it runs first.
        if name not in shifts:
            shifts[name] = exact[name] - by_channel(layer, y).double().mean(1)
        return y + on_channels(layer, shifts[name].to(y.dtype), y)

    chosen = {name: layer for name, layer in simulation.layers.items() if name not in keep_float}
    with simulation.rounded(*chosen) as rounded, hooked(chosen, after=correct):
        rounded(few)
    for name, shift in shifts.items():
        layer: Any = corrected.get_submodule(name)
        old = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach().double()
        layer.bias = nn.Parameter((old + shift).to(layer.weight.dtype))
    return corrected


def _means(model: nn.Module, inputs: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Return the means of the output channels on the very samples that are compared."""
    layers = {name: model.get_submodule(name) for name in names}
    found: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, _: object, y: Tensor) -> None:
        found.setdefault(name, by_channel(layer, y).double().mean(1))

    with torch.no_grad(), hooked(layers, after=note):
        model(inputs)
    return found
