"""The arithmetic of a run: what the recipe says, or what is fast on the device at hand."""

from __future__ import annotations

import warnings
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch

from reparam._support.processor import multiplies_bf16
from reparam.errors import MachineWarning
from reparam.lab.training.preflight import on_cpu

if TYPE_CHECKING:
    from pathlib import Path

    from reparam.lab.training.recipe import Recipe
    from reparam.lab.training.result import Hardware

__all__ = ["resolve_precision"]


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
    if on_cpu(hardware):
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
