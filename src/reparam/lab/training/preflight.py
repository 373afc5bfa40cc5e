"""What can be found wrong before the first step, in a second rather than after an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reparam.errors import InputError
from reparam.frontends.torch.copying import own_copy
from reparam.lab.training.checkpoints import check_room

if TYPE_CHECKING:
    from torch import nn

    from reparam.lab.data import ImageData
    from reparam.lab.training.checkpoints import RunFiles
    from reparam.lab.training.recipe import Recipe
    from reparam.lab.training.result import Hardware

__all__ = ["check_disk", "check_hardware", "check_model", "on_cpu"]


def check_model(model: nn.Module, data: ImageData) -> None:
    """Check that a model takes the images and knows the classes of a data set.

    Raises:
        InputError: It does not, or has nothing to train.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "the model has no trainable parameters; needed at least one with requires_grad=True"
        )
    data.check_fits(own_copy(model).cpu().eval())


def check_disk(model: nn.Module, recipe: Recipe, files: RunFiles) -> None:
    """Check that the disk has room for all the checkpoints of a run.

    Raises:
        InputError: It has not.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    states = {"sgd": 1, "adamw": 2}[recipe.optimizer.kind]
    averages = 1 if recipe.ema.decay else 0
    resume = (1 + states + averages) * weights
    # best, last, and two resume checkpoints: the next is written before the last is replaced
    check_room(files.resume, 2 * weights + 2 * resume)


def check_hardware(recipe: Recipe, hardware: Hardware) -> None:
    """Check that the devices can do what is asked of them.

    Raises:
        InputError: They cannot.
    """
    if not on_cpu(hardware):
        return
    if recipe.precision == "fp16":
        raise InputError(
            "precision 'fp16' needs a GPU, and this run is on the CPU: use 'auto', 'bf16' or 'fp32'"
        )
    if hardware.sync_batchnorm:
        raise InputError(
            "sync_batchnorm needs GPUs (PyTorch has no SyncBN on the CPU), and this run is on the "
            "CPU: leave it out"
        )


def on_cpu(hardware: Hardware) -> bool:
    """Say whether a run with this hardware is one on the CPU."""
    if hardware.accelerator != "auto":
        return hardware.accelerator == "cpu"
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())
