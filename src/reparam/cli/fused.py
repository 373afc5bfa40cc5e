"""The fused net that a MODEL and its weights stand for, and an input that it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

import reparam
from reparam.cli.targets import (
    Inputs,
    Loaded,
    Target,
    check_runs,
    command,
    example_inputs,
    load_model,
    sized,
)
from reparam.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.cli.options import PixelOptions
    from reparam.lab.data import ImageData

__all__ = ["load_and_check", "normalised"]


def load_and_check(target: Target, data: ImageData | None, inputs: Inputs) -> tuple[Loaded, Tensor]:
    """Build a MODEL in the form that its weights are of, and make sure that it is fused.

    Returns:
        The net, and an image of the data or random values of the shape that was asked for.

    Raises:
        InputError: the net is not fused, the weights fit neither form, or it does not take images
            of the data or does not know their classes.
    """
    target = sized(target, data)
    loaded = load_model(target, inputs)
    sample = _sample(loaded, data, inputs)
    if data is not None:
        data.check_fits(loaded.model)
    regions = reparam.plan(loaded.model, sample).regions
    if regions:
        size = inputs.words() or ["--input-size", str(sample.shape[-1])]
        fuse = command("fuse", *target.words(), *size, "-o", "fused.safetensors")
        raise InputError(
            f"{target.name} is not fused: {len(regions)} regions would fold, the first at "
            f"{regions[0].where} ({regions[0].what}). Fuse it first: {fuse}; "
            "then give --weights fused.safetensors"
        )
    return loaded, sample


def normalised(data: ImageData, pixels: PixelOptions) -> ImageData:
    """The data as the net was trained on it, where that was normalised in another way.

    Raises:
        InputError: one of the two is missing, or is not a number for each channel.
    """
    mean, std = pixels.mean, pixels.std
    if mean is None and std is None:
        return data
    if mean is None or std is None:
        raise InputError("--mean and --std belong together; give both")
    return replace(data, mean=_channels("--mean", mean, data), std=_channels("--std", std, data))


def _channels(option: str, text: str, data: ImageData) -> tuple[float, ...]:
    count = data.image_shape[0]
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    lowest = 0.0 if option == "--mean" else 1e-6
    if len(found) != count or not all(lowest <= value <= 1 for value in found):
        raise InputError(
            f"{option} {text!r} is not {count} numbers from 0 to 1, as pixels are before them; "
            f"give something like {','.join(['0.5'] * count)}"
        )
    return found


def _sample(loaded: Loaded, data: ImageData | None, inputs: Inputs) -> Tensor:
    if data is None or inputs.shape is not None:
        return example_inputs(loaded, inputs)
    check_runs(loaded, torch.zeros(2, *data.image_shape))
    image, _ = data.tensors(data.validation, limit=1)
    parameters = (p.dtype for p in loaded.model.parameters() if p.is_floating_point())
    return image.to(next(parameters, torch.float32))
