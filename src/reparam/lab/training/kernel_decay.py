"""L2 regularisation of the equivalent kernels of multi-branch blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from reparam.errors import InexactError, InputError
from reparam.fusing import operator

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KernelDecay"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class KernelDecay:
    """``strength / 2 * sum over blocks of |K|^2``, K being the one kernel that a block stands for.

    Decaying the kernels of the branches one by one does not see that they add up; this does
    (RepVGG's official training code, its "custom L2"). The blocks are the largest modules with
    several convolutions that are one convolution in eval mode. Batch normalisation counts with its
    running statistics. Every block is traced in every step, a few milliseconds each.

    Attributes:
        blocks: Names of the blocks within the model.
        parameters: The kernels of the blocks' convolutions, which need no other decay.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        """Find the blocks of `model`.

        Raises:
            InputError: There are none.
        """
        self._strength = strength
        self.blocks = tuple(_blocks(model, ""))
        if not self.blocks:
            raise InputError(
                "kernel_decay needs multi-branch blocks (several convolutions that add up to one), "
                "and the model has none: use optimizer.weight_decay"
            )
        self.parameters = frozenset(
            layer.weight
            for name in self.blocks
            for layer in model.get_submodule(name).modules()
            if isinstance(layer, _CONVOLUTIONS) and isinstance(layer.weight, nn.Parameter)
        )

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty, float32, shape ()."""
        total = torch.zeros((), dtype=torch.float64)
        for name in self.blocks:
            kernel = operator(model.get_submodule(name)).kernel
            total = total.to(kernel.device) + kernel.square().sum()
        return (0.5 * self._strength * total).float()


def _blocks(module: nn.Module, name: str) -> list[str]:
    """Return the names of the largest affine modules with several convolutions."""
    convolutions = sum(isinstance(layer, _CONVOLUTIONS) for layer in module.modules())
    if convolutions < 2:
        return []
    if name and _is_one_convolution(module):
        return [name]
    found = []
    for child_name, child in module.named_children():
        found += _blocks(child, f"{name}.{child_name}" if name else child_name)
    return found


def _is_one_convolution(module: nn.Module) -> bool:
    try:
        operator(module)
    except InexactError:
        return False
    return True
