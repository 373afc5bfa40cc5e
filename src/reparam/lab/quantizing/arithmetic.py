r"""Eight-bit rounding as the engines do it, in PyTorch: the model of what an engine will compute.

Weights have a step for each output channel and no offset, ``w_q = d_o round(w / d_o)`` with
``d_o = max |w_o| / 127`` (64 in place of 127 for seven bits). Activations have one step and an
integer offset for a whole tensor, ``x_q = d (clip(round(x / d) + z, 0, 255) - z)``, which
represents zero exactly. See Jacob et al., CVPR 2018, arXiv 1712.05877, section 2.1, and
Krishnamoorthi, arXiv 1806.08342, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reparam.errors import InputError

if TYPE_CHECKING:
    from typing import Self

_LEVELS = {8: 127, 7: 64}
_STEPS = 255
_SILENT = 200.0
"""Decibels of a difference that does not exist."""


@dataclass(frozen=True)
class Arithmetic:
    """How an engine multiplies and adds on some processor.

    Attributes:
        weight_bits: 8 or 7.
        saturates: Whether products are added in pairs in sixteen bits, as x86 processors without
            VNNI do.
        joins_taps: Whether such a pair may reach from one tap of a kernel into the next: in ONNX
            Runtime it does, in OpenVINO it does not.
    """

    weight_bits: int = 8
    saturates: bool = False
    joins_taps: bool = False

    def __post_init__(self) -> None:
        if self.weight_bits not in _LEVELS:
            raise InputError(f"weight_bits is {self.weight_bits}; the engines take 8, or 7 of them")

    def steps(self, weight: Tensor) -> Tensor:
        """Return the step of each output channel of a weight, shape ``(O, 1, ...)``."""
        widest = weight.detach().flatten(1).abs().amax(1) / _LEVELS[self.weight_bits]
        widest = torch.where(widest > 0, widest, torch.ones_like(widest))
        return widest.view(-1, *[1] * (weight.dim() - 1))


EIGHT_BITS = Arithmetic()
"""Weights of eight bits, sums of 32: VNNI, AMX, Arm."""


@dataclass(frozen=True)
class Grid:
    """The 256 values that a tensor of activations may take.

    Attributes:
        step: Distance of two neighbours; 0 where the tensor is always zero.
        zero: Number of the value that is exactly zero, 0 to 255.
    """

    step: float
    zero: int

    @classmethod
    def over(cls, low: float, high: float) -> Self:
        """Return the grid that reaches from ``low`` to ``high`` and holds zero.

        >>> Grid.over(0.0, 255.0)
        Grid(step=1.0, zero=0)
        """
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / _STEPS
        return cls(step, round(-low / step) if step else 0)

    def round(self, x: Tensor) -> Tensor:
        """Return the values of the grid next to those of ``x``, of the same shape and dtype."""
        return (self.number(x) - self.zero) * self.step

    def number(self, x: Tensor) -> Tensor:
        """Return the numbers, 0 to 255, of the values of the grid next to those of ``x``."""
        if not self.step:
            return torch.zeros_like(x)
        return (x / self.step).round_().add_(self.zero).clamp_(0, _STEPS)


def round_weight(weight: Tensor, arithmetic: Arithmetic = EIGHT_BITS) -> Tensor:
    """Round a weight, shape ``(O, ...)``, with a step for each output channel.

    >>> round_weight(torch.tensor([[1.27, 0.004], [127.0, 0.4]])).tolist()[1]
    [127.0, 0.0]
    """
    step = arithmetic.steps(weight)
    return (weight.detach() / step).round_().mul_(step)


def decibels(exact: Tensor, rounded: Tensor) -> float:
    r"""Return the signal-to-quantization-noise ratio in decibels.

    ``10 log10(sum y^2 / sum (y - y_q)^2)``; 6.02 dB are one bit, 20 dB an error of a tenth.

    >>> round(decibels(torch.tensor([10.0]), torch.tensor([9.0])), 6)
    20.0
    """
    noise = (exact.double() - rounded.double()).square().sum()
    return ratio(float(exact.double().square().sum()), float(noise))


def ratio(signal: float, noise: float) -> float:
    """Return the ratio of two energies in decibels, from -200 to 200 (no noise, or no signal).

    >>> ratio(100.0, 1.0), ratio(1.0, 0.0)
    (20.0, 200.0)
    """
    if not noise > 0:
        return _SILENT
    if not signal > 0:
        return -_SILENT
    return max(-_SILENT, min(_SILENT, 10 * math.log10(signal / noise)))
