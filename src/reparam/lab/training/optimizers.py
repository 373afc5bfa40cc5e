"""The optimizer of a recipe, and what decays: single weights, or equivalent kernels of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from reparam.errors import InexactError, InputError
from reparam.fusing import operator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from reparam.lab.training.recipe import Optimizer

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(
    model: nn.Module, optimizer: Optimizer, without_decay: frozenset[nn.Parameter] = frozenset()
) -> list[dict[str, object]]:
    """Return groups of the parameters that are decayed and stepped alike.

    The entry ``rate`` of a group is its learning rate over the recipe's.

    Args:
        model: Its trainable parameters are grouped; a shared one comes once.
        optimizer: Says what does not decay, and how fast the biases of normalisations learn.
        without_decay: Parameters that do not decay either.
    """
    excluded = set(without_decay) | set(_excluded(model, optimizer))
    biases = set(_norm_biases(model)) if optimizer.norm_bias_rate != 1 else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = (parameter in biases, parameter in excluded)
            groups.setdefault(kind, []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": 0.0 if constant else optimizer.weight_decay,
            "rate": optimizer.norm_bias_rate if fast else 1.0,
        }
        for (fast, constant), members in sorted(groups.items())
    ]


def build_optimizer(
    model: nn.Module, optimizer: Optimizer, without_decay: frozenset[nn.Parameter] = frozenset()
) -> torch.optim.Optimizer:
    """Return the optimizer for the trainable parameters of `model`."""
    groups = parameter_groups(model, optimizer, without_decay)
    if optimizer.kind == "adamw":
        return torch.optim.AdamW(groups, lr=optimizer.learning_rate, betas=optimizer.betas)
    return torch.optim.SGD(
        groups,
        lr=optimizer.learning_rate,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
    )


def _excluded(model: nn.Module, optimizer: Optimizer) -> Iterator[nn.Parameter]:
    if "bias" in optimizer.no_decay:
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] == "bias":
                yield parameter
    for weight, after_convolution in _norm_weights(model):
        if "norm" in optimizer.no_decay or (
            "conv_norm" in optimizer.no_decay and after_convolution
        ):
            yield weight


def _norm_biases(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, _NORMS) and isinstance(module.bias, nn.Parameter):
            yield module.bias


def _norm_weights(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Yield the weight of every normalisation, and whether its elder sibling is a convolution."""
    if isinstance(model, _NORMS) and isinstance(model.weight, nn.Parameter):
        yield model.weight, False
    for parent in model.modules():
        elder: nn.Module | None = None
        for child in parent.children():
            if isinstance(child, _NORMS) and isinstance(child.weight, nn.Parameter):
                yield child.weight, isinstance(elder, _ConvNd)
            elder = child


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
