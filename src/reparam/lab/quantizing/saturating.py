"""What saturation takes off the sums of eight-bit products, where they are added in 16 bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from reparam.lab.quantizing.layers import Layer

__all__ = ["lost_to_saturation"]

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
