"""The fused net that MODEL and --weights stand for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import reparam
from reparam.cli.targets import load_model
from reparam.errors import CheckpointError, InputError

__all__ = ["load_fused"]


def load_fused(
    name: str, weights: Path | None, *, num_classes: int | None, shape: tuple[int, ...]
) -> nn.Module:
    """Build MODEL in the form that its weights are of, and make sure that it is fused.

    Weights that ``reparam fuse`` or ``reparam train`` wrote do not fit the net that is built by
    name but what folding makes of it, so that is tried where they do not.

    Args:
        name: MODEL.
        weights: The checkpoint, or None for the weights MODEL is built with.
        num_classes: Classes of MODEL, where it takes that.
        shape: Shape of one image of the data.

    Raises:
        InputError: The net is not fused, the weights fit neither form, or it does not take images
            of that shape.
    """
    sample = torch.zeros(2, *shape)
    try:
        model = _built(name, weights, num_classes)
    except CheckpointError as error:
        model = _folded(name, num_classes, sample)
        try:
            reparam.load_checkpoint(model, weights or "")
        except CheckpointError:
            raise error from None
    _check_runs(name, model, sample)
    regions = reparam.plan(model, sample).regions
    if regions:
        given = "" if weights is None else f" --weights {weights}"
        classes = "" if num_classes is None else f" --num-classes {num_classes}"
        raise InputError(
            f"{name} is not fused: {regions[0].what} at {regions[0].where!r} can still fold, and "
            f"so can {len(regions) - 1} more places. Fuse it first: reparam fuse {name}{given}"
            f"{classes} --input-size {shape[-1]} -o fused.safetensors; then give --weights "
            "fused.safetensors"
        )
    return model


def _built(name: str, weights: Path | None, num_classes: int | None) -> nn.Module:
    """Build MODEL with the classes of the data, if it takes a number of classes."""
    try:
        return load_model(name, weights, num_classes=num_classes).model
    except CheckpointError:
        raise
    except InputError as refused:
        if "cannot be called with" not in str(refused):
            raise
    return load_model(name, weights).model


def _folded(name: str, num_classes: int | None, sample: torch.Tensor) -> nn.Module:
    model = _built(name, None, num_classes)
    _check_runs(name, model, sample)
    folded: nn.Module = reparam.fuse(model, sample)
    return folded


@torch.inference_mode()
def _check_runs(name: str, model: nn.Module, sample: torch.Tensor) -> None:
    try:
        model(sample)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        shape = "x".join(map(str, sample.shape[1:]))
        raise InputError(
            f"{name} does not run on images of the data, which have the shape {shape}: {error}; "
            "give the size that it takes with --input-size, or other data"
        ) from error
