"""How wide the layers of a net are, and what their channels cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reparam.pruning.result import ChannelGroup, LayerWidths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reparam.pruning.graph import Group, Member

__all__ = ["layer_widths", "parameters", "prices", "tied_groups"]


def prices(
    model: nn.Module, groups: Sequence[Group], inputs: tuple[Tensor, ...]
) -> dict[str, float]:
    """Return the multiply-adds that one channel of each group costs, by its root."""
    cost: dict[str, float] = {}

    def note(name: str, layer: nn.Module, output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        positions = output.numel() / (output.shape[1] if output.ndim > 2 else output.shape[-1])
        if isinstance(layer, _ConvNd) and layer.transposed:
            positions = positions / weight[0, 0].numel()  # roughly: each input meets every tap
        cost[name] = cost.get(name, 0.0) + positions * weight.numel()

    handles = [
        layer.register_forward_hook(lambda layer, _, output, name=name: note(name, layer, output))
        for name, layer in model.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear)
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {
        group.root: max(1.0, sum(_share(model, m, cost) for m in group.members)) / group.width
        for group in groups
    }


def _share(model: nn.Module, member: Member, cost: Mapping[str, float]) -> float:
    """Return what the channels of a group cost in one of its layers."""
    if member.name not in cost:
        return 0.0
    width = _widths(model.get_submodule(member.name))[0 if member.role == "in" else 1]
    return cost[member.name] * len(member.own) / width


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
