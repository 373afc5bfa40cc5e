"""The optimizer of a recipe, with the paper's exclusions from weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.lab.training.recipe import Optimizer

__all__ = ["build_optimizer", "parameter_groups"]

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


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
                yield child.weight, isinstance(elder, _CONVOLUTIONS)
            elder = child
