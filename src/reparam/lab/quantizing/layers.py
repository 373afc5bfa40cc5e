"""The layers that engines compute in integers: convolutions and linear maps, in running order."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.lab.hooking import hooked

Layer: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
"""What is quantized: its weight has the output channels first."""

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def layers_of(model: nn.Module, sample: Tensor) -> dict[str, Layer]:
    """Return the layers that one inference runs, by path, in the order in which they run.

    Args:
        model: A module in eval mode.
        sample: Its input, the batch first.

    Raises:
        InputError: The model runs none.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    >>> list(layers_of(net, torch.zeros(1, 3, 3, 3)))
    ['0', '3']
    """
    known = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    ran: dict[str, Layer] = {}

    with torch.no_grad(), hooked(known, before=lambda name, layer, _: ran.update({name: layer})):
        model(sample)
    if not ran:
        raise InputError(
            f"{type(model).__name__} runs no convolution and no linear layer, so there is nothing "
            "to quantize"
        )
    return ran


def by_channel(layer: nn.Module, values: Tensor) -> Tensor:
    """Return input or output of a layer with its channels first, shape ``(C, everything else)``.

    >>> by_channel(nn.Conv2d(3, 4, 1), torch.zeros(2, 3, 5, 5)).shape
    torch.Size([3, 50])
    """
    axis = -1 if isinstance(layer, nn.Linear) else 1
    return values.movedim(axis, 0).flatten(1)


def on_channels(layer: nn.Module, values: Tensor, like: Tensor) -> Tensor:
    """Return a value for each output channel in the shape in which it meets outputs of a layer.

    >>> on_channels(nn.Conv2d(3, 4, 1), torch.zeros(4), torch.zeros(2, 4, 5, 5)).shape
    torch.Size([1, 4, 1, 1])
    """
    axis = like.dim() - 1 if isinstance(layer, nn.Linear) else 1
    return values.view([-1 if d == axis else 1 for d in range(like.dim())])


def layer_label(layer: Layer) -> str:
    """Say what a layer is in the field's terms.

    >>> layer_label(nn.Conv2d(8, 16, 3, stride=2)), layer_label(nn.Linear(8, 10))
    ('3x3 conv 8->16, stride 2', 'linear 8->10')
    """
    if isinstance(layer, nn.Linear):
        return f"linear {layer.in_features}->{layer.out_features}"
    size = "x".join(map(str, layer.kernel_size))
    parts = [f"{size} conv {layer.in_channels}->{layer.out_channels}"]
    if any(step != 1 for step in layer.stride):
        parts.append(f"stride {max(layer.stride)}")
    if layer.groups != 1:
        parts.append(f"{layer.groups} groups")
    return ", ".join(parts)


def spread(ranges: Tensor) -> float:
    """Return how many times the largest range exceeds the median of those that are not zero.

    One step size for all channels wastes that factor on the channel in the middle: a factor of two
    is a bit of its eight.

    >>> spread(torch.tensor([1.0, 1.0, 4.0, 0.0]))
    4.0
    """
    used = ranges[ranges > 0]
    return float(used.max() / used.median()) if len(used) else 1.0
