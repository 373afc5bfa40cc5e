"""How wide the layers of a net are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd

from reparam.lab.pruning.result import ChannelGroup, LayerWidths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.lab.pruning.graph import Group

__all__ = ["layer_widths", "parameters", "tied_groups"]


def layer_widths(before: nn.Module, after: nn.Module) -> tuple[LayerWidths, ...]:
    """Compare the widths of two nets with the same layers."""
    smaller = dict(after.named_modules())
    return tuple(
        LayerWidths(name, _what(layer), _widths(layer), _widths(smaller[name]))
        for name, layer in before.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear)
    )


def _widths(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, _ConvNd):
        return (layer.in_channels, layer.out_channels)
    rows, columns = layer.get_parameter("weight").shape
    return (columns, rows)


def _what(layer: nn.Module) -> str:
    if not isinstance(layer, _ConvNd):
        return "linear"
    return "x".join(map(str, layer.kernel_size)) + " conv"


def tied_groups(groups: Sequence[Group], layers: Sequence[LayerWidths]) -> tuple[ChannelGroup, ...]:
    """List the groups that more than one layer writes."""
    now = {layer.name: layer.after[1] for layer in layers}
    named = [(tuple(m.name for m in group.having("out")), group) for group in groups]
    return tuple(
        ChannelGroup(names, group.width, now[group.root])
        for names, group in named
        if len(names) > 1
    )


def parameters(model: nn.Module) -> int:
    """Count the numbers that a net learns."""
    return sum(parameter.numel() for parameter in model.parameters())
