"""What MODEL and its options on the command line stand for."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import reparam
from reparam._support.spelling import advice
from reparam.checkpoints import LoadReport, load_checkpoint
from reparam.cli.terminal import Terminal
from reparam.deploy.exporting import read_metadata
from reparam.errors import CheckpointError, InputError
from reparam.fusing import reference_model
from reparam.models.lookup import accepts, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reparam.lab.data import ImageData

__all__ = [
    "MOST_NUMBERS",
    "SEED",
    "SIZE",
    "Checkpoint",
    "Inputs",
    "Loaded",
    "Target",
    "build",
    "check_runs",
    "checked_size",
    "command",
    "example_inputs",
    "load_model",
    "parse_shape",
    "pruned_note",
    "random_input",
    "reference_of",
    "sized",
    "with_weights",
]

MOST_NUMBERS = 1 << 28
"""Of one input: 1 GiB in float32. What is larger is a slip of the finger."""

SIZE = 224
SEED = 0


@dataclass(frozen=True)
class Inputs:
    """What was said about the input: a whole shape, the side of square images, shapes by name."""

    shape: tuple[int, ...] | None = None
    size: int | None = None
    named: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The same, as it is written on the command line."""
        given = {"": self.shape} if self.shape is not None else {}
        shapes = [
            word
            for name, shape in {**given, **self.named}.items()
            for word in ("--shape", f"{name}{'=' if name else ''}{','.join(map(str, shape))}")
        ]
        return shapes if self.size is None else [*shapes, "--input-size", str(self.size)]


@dataclass(frozen=True)
class Checkpoint:
    """A file to load, the entry of it that holds the weights, and whether all must match."""

    path: Path
    key: str | None = None
    strict: bool = True

    def words(self) -> list[str]:
        """The same, as it is written on the command line."""
        key = [] if self.key is None else ["--key", self.key]
        return ["--weights", str(self.path), *key, *([] if self.strict else ["--no-strict"])]


@dataclass(frozen=True)
class Target:
    """A MODEL as the command line gives it: a name, classes, weights."""

    name: str
    checkpoint: Checkpoint | None = None
    num_classes: int | None = None

    def words(self) -> list[str]:
        """The same, as it is written on the command line."""
        classes = [] if self.num_classes is None else ["--num-classes", str(self.num_classes)]
        return [self.name, *classes, *(self.checkpoint.words() if self.checkpoint else [])]


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
        entry = f", entry {self.report.wrapper}" if self.report.wrapper else ""
        return f"{self.name} with {self.report.path.name}{entry}"


def sized(target: Target, data: ImageData | None) -> Target:
    """Ask a MODEL for the classes of the data, if it takes a number and none is given."""
    if data is None or target.num_classes is not None:
        return target
    fits = accepts(target.name, num_classes=data.num_classes)
    return replace(target, num_classes=data.num_classes) if fits else target


def load_model(target: Target, inputs: Inputs | None = None) -> Loaded:
    """Build a MODEL, load its weights, and put it in eval mode.

    Args:
        target: The MODEL and its weights.
        inputs: What it takes, which says what folds in it where the weights are of a fused net.

    Raises:
        InputError: the name or the file is of no use.
    """
    model = build(target).eval()
    if target.checkpoint is None:
        return Loaded(target.name, model, None)
    model, report = with_weights(model, target.checkpoint, inputs or Inputs())
    return Loaded(target.name, model.eval(), report)


def build(target: Target, seed: int = SEED) -> nn.Module:
    """Build a MODEL as it is before its weights are loaded."""
    torch.manual_seed(seed)
    source, _, folder = target.name.partition(":")
    if source == "hf":
        from reparam.integrations.hugging_face import load_pretrained

        if target.num_classes is not None:
            raise InputError(
                f"the classes of {target.name} are those of its config.json; leave "
                f"--num-classes out"
            )
        return load_pretrained(folder)
    return resolve(target.name, num_classes=target.num_classes)


def with_weights(
    model: nn.Module, checkpoint: Checkpoint, inputs: Inputs
) -> tuple[nn.Module, LoadReport]:
    """Load a checkpoint into `model`, or into what it was fused or pruned to.

    ``reparam fuse`` and ``reparam train`` write the weights of the fused net, ``reparam prune``
    those of one with fewer channels; the net is then `model`, fused, with the widths of the file.
    Otherwise it is `model` itself.

    Raises:
        InputError: the file is of no use.
    """
    weights = checkpoint.path
    if not pruned_note(weights):
        try:
            report = load_checkpoint(model, weights, strict=checkpoint.strict, key=checkpoint.key)
        except CheckpointError:
            fused = _fused(model, checkpoint, inputs)
            if fused is None:
                raise
            return fused, LoadReport(
                weights, "", "reparam, fused", "deploy", tuple(fused.state_dict()), (), (), ()
            )
        if not report.complete:
            Terminal().note(f"note: {report}")
        return model, report
    from reparam.lab.pruning import load_pruned

    pruned = load_pruned(reparam.fuse(model.eval()), weights)
    names = tuple(pruned.state_dict())
    return pruned, LoadReport(weights, "", "reparam, pruned", "deploy", names, (), (), ())


def _fused(model: nn.Module, checkpoint: Checkpoint, inputs: Inputs) -> nn.Module | None:
    """The model as it was fused, if the weights are of that; strict in any case."""
    if checkpoint.key is not None:
        return None
    given = [random_input(model, inputs)] if inputs.shape or inputs.size else []
    for example in (*given, None):
        with contextlib.suppress(reparam.ReparamError):
            return reparam.load_fused(model, checkpoint.path, example)
    return None


def pruned_note(weights: Path | None) -> dict[str, str]:
    """What a file says of channels that are gone, as a note for what is made from it."""
    if weights is None or weights.suffix.lower() != ".safetensors" or not weights.is_file():
        return {}
    try:
        metadata = read_metadata(weights)
    except Exception:  # noqa: BLE001 - whatever is wrong with the file, loading it says it better
        return {}
    return {"pruned": json.dumps(metadata["pruned"])} if "pruned" in metadata else {}


def command(*words: str) -> str:
    """A command as it can be typed: words with spaces or signs of the shell are quoted."""
    return shlex.join(["reparam", *words])


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
    return checked_size(shape)


def checked_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape, if the memory has a chance to hold it.

    Raises:
        InputError: it has not.
    """
    if math.prod(shape) > MOST_NUMBERS:
        size = "x".join(map(str, shape))
        raise InputError(
            f"an input of shape {size} has more than {MOST_NUMBERS:,} numbers; give a smaller one"
        )
    return shape


def reference_of(loaded: Loaded, asked: Mapping[str, Any]) -> Loaded:
    """The model that does what was asked for and computes all that it did before.

    Raises:
        InputError: it has no such argument.
    """
    outputs, fixed = asked["outputs"], asked["fixed"]
    if outputs is None and fixed is None:
        return loaded
    return replace(loaded, model=reference_model(loaded.model, outputs, fixed).eval())


def example_inputs(loaded: Loaded, inputs: Inputs) -> torch.Tensor:
    """Random normal values of the shape that was asked for, or that the model says it takes.

    Without `inputs`, timm's own record of the model is asked, then the first convolution for its
    channels; images are 224 pixels wide unless somebody says otherwise.

    Raises:
        InputError: nobody says, and the model does not begin with a 2-d convolution; or the model
            does not run on what was made.
    """
    sample = random_input(loaded.model, inputs)
    check_runs(loaded, sample)
    return sample


def random_input(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """The same, without running the model on it.

    Raises:
        InputError: nobody says what it looks like.
    """
    generator = torch.Generator().manual_seed(SEED)
    shape = checked_size(inputs.shape or _image_shape(model, inputs.size))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(shape, generator=generator).to(dtype)


@torch.inference_mode()
def check_runs(loaded: Loaded, sample: torch.Tensor) -> None:
    """Find out at once whether the model takes the input, and say so in the user's terms."""
    try:
        loaded.model(sample)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        size = "x".join(str(length) for length in sample.shape)
        raise InputError(
            f"{loaded.name} does not run on an input of shape {size}: {error}"
            + advice("; give the shape that it takes with {shape}", shape=...)
            + advice("; give the size that it takes with {input_size}", input_size=...)
        ) from error


def _image_shape(model: nn.Module, size: int | None) -> tuple[int, ...]:
    declared = _declared_by_timm(model)
    if declared is not None:
        channels, height, width = declared
        return (1, channels, size or height, size or width)
    channels = _first_channels(model)
    return (1, channels, size or SIZE, size or SIZE)


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
        f"no 2-d convolution in {type(model).__name__} says what its input looks like"
        + advice("; give it with {shape}", shape="1,3,224,224")
    )
