"""What is settled or found wrong before the first step, in a second and not after an epoch."""

from __future__ import annotations

import warnings
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch

from reparam._support.processor import multiplies_bf16
from reparam.errors import InputError, MachineWarning
from reparam.frontends.torch.copying import own_copy
from reparam.lab.training.callbacks import check_room

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from reparam.lab.data import ImageData
    from reparam.lab.training.callbacks import RunFiles
    from reparam.lab.training.recipe import Recipe
    from reparam.lab.training.result import Hardware


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
    if not _on_cpu(hardware):
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


def _on_cpu(hardware: Hardware) -> bool:
    if hardware.accelerator != "auto":
        return hardware.accelerator == "cpu"
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def resolve_precision(recipe: Recipe, hardware: Hardware, checkpoint: Path | None) -> Recipe:
    """Return the recipe with a precision in place of ``"auto"``.

    That of the checkpoint, where a run is resumed; else bfloat16 where the device multiplies it,
    and float32 where it would be emulated. Warns where the recipe asks for what is emulated.

    Args:
        recipe: The recipe.
        hardware: What the run uses.
        checkpoint: What is resumed from, if anything is.
    """
    fast = _multiplies_bf16(hardware)
    if recipe.precision == "auto":
        begun = None if checkpoint is None else _precision_of(checkpoint)
        recipe = recipe.override(precision=begun or ("bf16" if fast else "fp32"))
    if recipe.precision == "bf16" and not fast:
        warnings.warn(
            "the recipe computes in bf16, which this device has no instructions for: emulated, a "
            "step takes several times as long as in fp32; use the precision 'auto' or 'fp32'",
            MachineWarning,
            stacklevel=3,
        )
    return recipe


def _multiplies_bf16(hardware: Hardware) -> bool:
    if _on_cpu(hardware):
        return multiplies_bf16()
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False


def _precision_of(checkpoint: Path) -> str | None:
    """Return the precision that a run was begun in; None if that cannot be read."""
    try:
        state = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
        return str(state["reparam"]["run"]["recipe"]["precision"])
    except (EOFError, KeyError, OSError, RuntimeError, TypeError, UnpicklingError):
        return None  # resuming from it will say what is wrong with it
