"""What MODEL and its options on the command line stand for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import reparam
from reparam.checkpoints import LoadReport, load_checkpoint
from reparam.errors import InputError
from reparam.exporting import read_metadata
from reparam.models import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Inputs",
    "Loaded",
    "example_inputs",
    "load_model",
    "parse_shape",
    "pruned_note",
    "with_weights",
]

_SIZE = 224
_SEED = 0


@dataclass(frozen=True)
class Inputs:
    """What was said about the input: a whole shape, the side of square images, shapes by name."""

    shape: tuple[int, ...] | None = None
    size: int | None = None
    named: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def as_options(self) -> str:
        """The same, as it is written on the command line; ends with a space if there is any."""
        shape = "" if self.shape is None else f"--shape {','.join(map(str, self.shape))} "
        return shape if self.size is None else f"{shape}--input-size {self.size} "


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, and what was said when its weights were loaded."""

    name: str
    model: nn.Module
    report: LoadReport | None

    @property
    def origin(self) -> str:
        """Where the weights come from, in words."""
        if self.report is None:
            return f"{self.name} with the weights it was built with"
        return f"{self.name} with {self.report.path.name}"


def load_model(name: str, weights: Path | None = None, *, num_classes: int | None = None) -> Loaded:
    """Build the model called `name`, load `weights` into it, and put it in eval mode.

    Raises:
        InputError: the name or the file is of no use.
    """
    torch.manual_seed(_SEED)
    model = resolve(name, num_classes=num_classes)
    if weights is None:
        return Loaded(name, model.eval(), None)
    model, report = with_weights(model, weights)
    return Loaded(name, model.eval(), report)


def with_weights(model: nn.Module, weights: Path) -> tuple[nn.Module, LoadReport]:
    """Load a checkpoint into `model`, or into what it was pruned to if the file says that it was.

    ``reparam prune`` writes the weights of a fused net with fewer channels; the net is then
    `model`, fused, with the widths of the file. Otherwise it is `model` itself.

    Raises:
        InputError: the file is of no use.
    """
    if not pruned_note(weights):
        return model, load_checkpoint(model, weights)
    from reparam.pruning import load_pruned

    pruned = load_pruned(reparam.fuse(model.eval()), weights)
    names = tuple(pruned.state_dict())
    return pruned, LoadReport(weights, "", "reparam, pruned", "deploy", names, (), (), ())


def pruned_note(weights: Path | None) -> dict[str, str]:
    """What a file says of channels that are gone, as a note for what is made from it."""
    if weights is None or weights.suffix.lower() != ".safetensors" or not weights.is_file():
        return {}
    try:
        metadata = read_metadata(weights)
    except Exception:  # noqa: BLE001 - whatever is wrong with the file, loading it says it better
        return {}
    return {"pruned": json.dumps(metadata["pruned"])} if "pruned" in metadata else {}


def parse_shape(text: str) -> tuple[int, ...]:
    """Read ``"1,3,224,224"`` or ``"1x3x224x224"``.

    >>> parse_shape("1x3x32x32")
    (1, 3, 32, 32)

    Raises:
        InputError: it is something else.
    """
    parts = text.lower().replace("x", ",").split(",")
    try:
        shape = tuple(int(part) for part in parts)
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(
            f"--shape {text!r} is not a shape; give whole numbers from 1 on, as in 1,3,224,224"
        )
    return shape


def example_inputs(loaded: Loaded, inputs: Inputs) -> torch.Tensor:
    """Random normal values of the shape that was asked for, or that the model says it takes.

    Without `inputs`, timm's own record of the model is asked, then the first convolution for its
    channels; images are 224 pixels wide unless somebody says otherwise.

    Raises:
        InputError: nobody says, and the model does not begin with a 2-d convolution; or the model
            does not run on what was made.
    """
    model = loaded.model
    generator = torch.Generator().manual_seed(_SEED)
    shape = inputs.shape or _image_shape(model, inputs.size)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    sample = torch.randn(shape, generator=generator).to(dtype)
    _check_runs(loaded, sample)
    return sample


@torch.inference_mode()
def _check_runs(loaded: Loaded, sample: torch.Tensor) -> None:
    """Find out at once whether the model takes the input, and say so in the user's terms."""
    try:
        loaded.model(sample)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        size = "x".join(str(length) for length in sample.shape)
        raise InputError(
            f"{loaded.name} does not run on an input of shape {size}: {error}; "
            "give the shape that it takes with --shape N,C,H,W or --input-size PIXELS"
        ) from error


def _image_shape(model: nn.Module, size: int | None) -> Sequence[int]:
    declared = _declared_by_timm(model)
    if declared is not None:
        channels, height, width = declared
        return (1, channels, size or height, size or width)
    channels = _first_channels(model)
    return (1, channels, size or _SIZE, size or _SIZE)


def _declared_by_timm(model: nn.Module) -> tuple[int, int, int] | None:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    declared = config.get("input_size") if isinstance(config, dict) else None
    if declared is None or len(declared) != 3:
        return None
    # The record speaks of the pretrained weights; the model may have been built for other images.
    return (_first_channels(model, otherwise=declared[0]), declared[1], declared[2])


def _first_channels(model: nn.Module, otherwise: int | None = None) -> int:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    if otherwise is not None:
        return otherwise
    raise InputError(
        f"no 2-d convolution in {type(model).__name__} says what its input looks like; "
        "give it with --shape, as in --shape 1,3,224,224"
    )
