"""How a convolution reads its input, and the fresh branches that can stand beside it.

A branch beside a convolution may use any box of its taps. In each spatial dimension such a box
starts at tap ``t`` and has ``m`` taps, so that with padding ``(lo, hi)``, dilation ``d`` and kernel
size ``k`` the branch needs the padding ``(lo - t d, hi - (k - t - m) d)`` to line up with its
sibling. A negative number there is a crop, which is what a 1x1 needs beside an unpadded 3x3.

Where a convolution pads with something else than zeros, all branches read one input that is padded
so beforehand, and pad nothing themselves: then they add up to one kernel whatever the padding is.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from reparam.algebra import conv_geometry, flat_pads
from reparam.branching.operators import conv_operator_geometry
from reparam.frontends.kinds import AVERAGE_POOLS, BATCH_NORMS, CONVS, ZERO_PADS

Pads = tuple[tuple[int, int], ...]
_Named = tuple[str, nn.Module]

_SHARED_PADS: dict[str, tuple[Callable[..., nn.Module], ...]] = {
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


class ConvLayout:
    """The geometry of one convolution, and a workshop for branches that line up with it.

    Every method returns a fresh branch, initialised as PyTorch initialises a new layer, whose
    output has the shape of the convolution's output. Each ends in a batch norm. A function that
    takes a layout and returns named branches is a kind of branching; see
    :func:`reparam.branching.register_kind`.

    Args:
        conv: The convolution to stand beside.
        generator: Source of the random initial weights; None takes PyTorch's global one.
        device: Where to create the branches; None is where ``conv`` is. ``"meta"`` creates
            branches without numbers, to look at.

    Attributes:
        dims: Number of spatial dimensions.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        groups: Number of channel groups.
        kernel_size: Per dimension.
        stride: Per dimension.
        dilation: Per dimension.
        pads: ``(low, high)`` per dimension: zeros before and after the input of the branches.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; other than
            zeros, the branches read an input that :meth:`shared_pad` has padded.

    """

    def __init__(
        self,
        conv: _ConvNd,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.dims = len(conv.kernel_size)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.groups = conv.groups
        self.kernel_size = tuple(conv.kernel_size)
        self.stride, self.dilation = tuple(conv.stride), tuple(conv.dilation)
        self.padding_mode = str(conv.padding_mode)
        self._geometry = conv_operator_geometry(conv)
        self.pads = self._geometry.padding()
        self._conv_pads = conv_operator_geometry(conv, padding=conv.padding).padding()
        self._generator = generator
        self._device = torch.device(device) if device is not None else conv.weight.device
        self._dtype = conv.weight.dtype

    # ---------------------------------------------------------------------------- questions

    @property
    def is_pointwise(self) -> bool:
        """Whether the kernel has a single tap."""
        return math.prod(self.kernel_size) == 1

    @property
    def has_identity(self) -> bool:
        """Whether the input can be added to the output: equal channels, stride 1."""
        return self.in_channels == self.out_channels and set(self.stride) == {1}

    def name(self, prefix: str, size: Sequence[int] | None = None) -> str:
        """Name a branch after its kernel size, such as ``conv3x3``."""
        return prefix + "x".join(str(k) for k in size or self.kernel_size)

    # ----------------------------------------------------------------------------- branches

    def shared_pad(self) -> nn.Module | None:
        """Make the padding that all branches share; None where they pad with zeros, or not."""
        flat = flat_pads(self._conv_pads)
        if self.padding_mode == "zeros" or not any(flat):
            return None
        return _SHARED_PADS[self.padding_mode][self.dims - 1](flat)

    def kernel(self) -> nn.Sequential:
        """Make another convolution of the same size, and its batch norm."""
        return self.window((0,) * self.dims, self.kernel_size)

    def pointwise(self) -> nn.Sequential:
        """Make a 1x1 convolution on the tap nearest the output position, with batch norm."""
        start = tuple(self._central_tap(dim) for dim in range(self.dims))
        return self.window(start, (1,) * self.dims)

    def along(self, dim: int) -> nn.Sequential:
        """Make a convolution that extends along one dimension only (1xk, kx1), with batch norm."""
        start = [self._central_tap(other) for other in range(self.dims)]
        size = [1] * self.dims
        start[dim], size[dim] = 0, self.kernel_size[dim]
        return self.window(start, size)

    def window(self, start: Sequence[int], size: Sequence[int]) -> nn.Sequential:
        """Make a convolution on a box of the kernel's taps, and its batch norm.

        Args:
            start: Per dimension the first tap of the box.
            size: Per dimension the number of taps.

        """
        layers, padding = self._pad_layers(self._window_pads(start, size), size)
        conv = self._conv(self.out_channels, size, self.stride, padding, self.dilation)
        return _sequence([*layers, ("conv", conv), ("bn", self._norm(self.out_channels))])

    def identity(self) -> nn.Module | None:
        """Make a batch norm on the input itself; None unless channels are equal and stride is 1."""
        if not self.has_identity:
            return None
        start = tuple(self._central_tap(dim) for dim in range(self.dims))
        pads = self._window_pads(start, (1,) * self.dims)
        norm = self._norm(self.out_channels)
        return _sequence([self._zero_pad(pads), ("bn", norm)]) if any(flat_pads(pads)) else norm

    def pointwise_then_kernel(self) -> nn.Sequential:
        """Make a 1x1 convolution, batch norm, the full kernel, batch norm (a branch of DBB).

        The padding is applied before the 1x1. A second convolution that padded would see zeros
        where the first batch norm gives its shift, and the branch would not be one kernel. The
        1x1 starts as the identity, as in the paper.
        """
        first = self._padded_pointwise(self.in_channels, identity=True)
        none = (0,) * self.dims
        last = self._conv(self.out_channels, self.kernel_size, self.stride, none, self.dilation)
        return _sequence([*first, ("conv", last), ("bn", self._norm(self.out_channels))])

    def pointwise_then_average(self) -> nn.Sequential | None:
        """Make a 1x1 convolution, batch norm, average pooling, batch norm (a branch of DBB).

        None for a dilated kernel: average pooling has no dilation.
        """
        if any(d != 1 and k != 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)):
            return None
        first = self._padded_pointwise(self.out_channels)
        pool = AVERAGE_POOLS[self.dims - 1](self.kernel_size, self.stride)
        return _sequence([*first, ("pool", pool), ("bn", self._norm(self.out_channels))])

    # ---------------------------------------------------------------------------- internals

    def _padded_pointwise(self, out_channels: int, *, identity: bool = False) -> list[_Named]:
        ones = (1,) * self.dims
        layers, padding = self._pad_layers(self.pads, ones)
        conv = self._conv(out_channels, ones, ones, padding, ones)
        if identity:
            self._set_to_identity(conv)
        return [*layers, ("pointwise", conv), ("pointwise_bn", self._norm(out_channels))]

    def _central_tap(self, dim: int) -> int:
        """Find the tap whose position in the input is nearest that of the output."""
        (low, high), step = self.pads[dim], self.dilation[dim]
        last = self.kernel_size[dim] - 1
        return min(
            range(last + 1), key=lambda t: max(abs(low - t * step), abs(high - (last - t) * step))
        )

    def _window_pads(self, start: Sequence[int], size: Sequence[int]) -> Pads:
        box = (
            taps[first : first + count]
            for taps, first, count in zip(self._geometry.offsets, start, size, strict=True)
        )
        return replace(self._geometry, offsets=tuple(box)).padding()

    def _pad_layers(
        self, pads: Pads, size: Sequence[int]
    ) -> tuple[list[_Named], tuple[int, ...] | str]:
        """Leave the padding to the convolution where it can express it, else pad before it."""
        if all(low == high >= 0 for low, high in pads):
            return [], tuple(low for low, _ in pads)
        same = conv_geometry((1, 1, *size), padding="same", dilation=self.dilation).padding()
        if pads == same and set(self.stride) == {1}:
            return [], "same"
        return [self._zero_pad(pads)], (0,) * self.dims

    def _zero_pad(self, pads: Pads) -> _Named:
        return "pad", ZERO_PADS[self.dims - 1](flat_pads(pads))

    def _conv(
        self,
        out_channels: int,
        size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] | str,
        dilation: Sequence[int],
    ) -> _ConvNd:
        conv: _ConvNd = nn.utils.skip_init(
            CONVS[self.dims - 1],
            self.in_channels,
            out_channels,
            tuple(size),
            stride=tuple(stride),
            padding=padding if isinstance(padding, str) else tuple(padding),
            dilation=tuple(dilation),
            groups=self.groups,
            bias=False,
            device=self._device,
            dtype=self._dtype,
        )
        self._draw(conv.weight)
        return conv

    def _draw(self, weight: torch.Tensor) -> None:
        """Fill a kernel as a new layer would be, on the device where the generator lives."""
        if weight.device.type == "meta":
            return
        source = self._generator.device if self._generator is not None else weight.device
        fresh = torch.empty(weight.shape, device=source)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=self._generator)
        with torch.no_grad():
            weight.copy_(fresh)

    def _set_to_identity(self, conv: _ConvNd) -> None:
        if conv.weight.device.type == "meta":
            return
        width = conv.out_channels // self.groups
        unit = torch.eye(width, device=conv.weight.device).repeat(self.groups, 1)
        with torch.no_grad():
            conv.weight.copy_(unit.reshape(conv.weight.shape))

    def _norm(self, channels: int) -> nn.Module:
        norm = BATCH_NORMS[self.dims - 1]
        made: nn.Module = norm(channels, device=self._device, dtype=self._dtype)
        return made


def _sequence(layers: Iterable[_Named]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))
