"""The weights of a pruned net, read back into the net that it was pruned from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from reparam.checkpoints import read_weights
from reparam.errors import CheckpointError
from reparam.frontends.torch.copying import own_copy

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import torch


def load_pruned(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Return a copy of a fused net with the widths and the weights of a file.

    The shapes in the file say how wide each layer is, so any file will do that holds the state
    dict of a net pruned from this one: ``.safetensors``, or what ``torch.save`` wrote.

    Args:
        model: The fused net that was pruned; its own weights do not matter. It is only read.
        path: The file.

    Returns:
        The pruned net, in the mode, type and on the device of ``model``.

    Raises:
        CheckpointError: The file cannot be read, is of another net, or a layer has another number
            of dimensions or another kernel there. Nothing is loaded in part.
        MissingExtraError: The file is ``.safetensors`` and the package safetensors is missing.

    >>> import tempfile, torch
    >>> from torch import nn
    >>> wide, narrow = nn.Sequential(nn.Conv2d(3, 16, 3)), nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(narrow.state_dict(), f"{folder}/narrow.pth")
    ...     load_pruned(wide, f"{folder}/narrow.pth")
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    )
    """
    try:
        return resize(model, read_weights(path).tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{Path(path).name}: {error}") from error


def resize(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a net whose layers have the shapes and values of these tensors.

    Raises:
        CheckpointError: Names differ, or shapes in more than the channels.
    """
    smaller = own_copy(model)
    expected = smaller.state_dict()
    missing = sorted(expected.keys() ^ tensors.keys())
    if missing:
        where = "the weights" if missing[0] in expected else "the net"
        raise CheckpointError(
            f"the weights are not of a net pruned from this {type(model).__name__}: {where} have "
            f"no {missing[0]!r} ({len(missing)} names differ); give the fused net that was pruned"
        )
    for name, value in expected.items():
        found = tensors[name]
        if found.ndim != value.ndim or found.shape[2:] != value.shape[2:]:
            raise CheckpointError(
                f"{name} is of shape {tuple(found.shape)} and the net's of {tuple(value.shape)}; "
                f"pruning changes the first two dimensions alone"
            )
    for name, module in smaller.named_modules():
        _narrow(module, f"{name}." if name else "", tensors)
    smaller.load_state_dict(dict(tensors))
    return smaller


def _narrow(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Give one module's own tensors other shapes, and let it know."""
    for key, parameter in module._parameters.items():
        found = tensors.get(f"{prefix}{key}")
        if parameter is not None and found is not None and found.shape != parameter.shape:
            new = parameter.detach().new_empty(found.shape)
            module._parameters[key] = nn.Parameter(new, requires_grad=parameter.requires_grad)
    for key, buffer in module._buffers.items():
        found = tensors.get(f"{prefix}{key}")
        if buffer is not None and found is not None and found.shape != buffer.shape:
            module._buffers[key] = buffer.new_empty(found.shape)
    weight = module._parameters.get("weight")
    if weight is not None:
        _tell(module, weight.shape)


def _tell(module: nn.Module, shape: torch.Size) -> None:
    """Set the numbers of channels that a layer keeps beside its weight."""
    if isinstance(module, _ConvNd):
        depthwise = module.groups == module.out_channels == module.in_channels
        rows, columns = (shape[1], shape[0]) if module.transposed else (shape[0], shape[1])
        if depthwise and module.groups > 1:
            module.groups = module.in_channels = module.out_channels = shape[0]
        elif module.transposed:
            module.out_channels, module.in_channels = rows * module.groups, columns
        else:
            module.out_channels, module.in_channels = rows, columns * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, _BatchNorm):
        module.num_features = shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shape[0]
