"""What MODEL and its options on the command line stand for."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import reparam
from reparam._support.spelling import advice
from reparam.checkpoints import LoadReport, load_checkpoint
from reparam.cli.groups import command
from reparam.cli.options import Inputs, PixelOptions, Target, checked_size
from reparam.cli.terminal import Terminal
from reparam.deploy.exporting import read_metadata
from reparam.errors import CheckpointError, InputError
from reparam.fusing import reference_model
from reparam.models.lookup import accepts, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reparam.lab.data import ImageData

SIZE = 224
SEED = 0


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
    """
    model = build(target).eval()
    if target.weights is None:
        return Loaded(target.name, model, None)
    model, report = with_weights(model, target, inputs or Inputs())
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


def with_weights(model: nn.Module, target: Target, inputs: Inputs) -> tuple[nn.Module, LoadReport]:
    """Load the weights into `model`, or into what it was fused or pruned to.

    ``reparam fuse`` and ``reparam train`` write the weights of the fused net, ``reparam prune``
    those of one with fewer channels; the net is then `model`, fused, with the widths of the file.
    Otherwise it is `model` itself.
    """
    weights = target.weights
    assert weights is not None  # noqa: S101 - who calls has looked
    if pruned_note(weights):
        from reparam.lab.pruning import load_pruned

        pruned = load_pruned(reparam.fuse(model.eval()), weights)
        return pruned, _report(weights, "pruned", pruned)
    try:
        report = load_checkpoint(model, weights, strict=target.strict, key=target.key)
    except CheckpointError:
        fused = None if target.key is not None else _fused(model, weights, inputs)
        if fused is None:
            raise
        return fused, _report(weights, "fused", fused)
    if not report.complete:
        Terminal().note(f"note: {report}")
    return model, report


def _report(weights: Path, what: str, model: nn.Module) -> LoadReport:
    names = tuple(model.state_dict())
    return LoadReport(weights, "", f"reparam, {what}", "deploy", names, (), (), ())


def _fused(model: nn.Module, weights: Path, inputs: Inputs) -> nn.Module | None:
    """The model as it was fused, if the weights are of that; strict in any case."""
    given = [random_input(model, inputs)] if inputs.shape or inputs.size else []
    for example in (*given, None):
        with contextlib.suppress(reparam.ReparamError):
            return reparam.load_fused(model, weights, example)
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


def reference_of(loaded: Loaded, asked: Mapping[str, Any]) -> Loaded:
    """The model that does what was asked for and computes all that it did before."""
    outputs, fixed = asked["outputs"], asked["fixed"]
    if outputs is None and fixed is None:
        return loaded
    return replace(loaded, model=reference_model(loaded.model, outputs, fixed).eval())


def example_inputs(loaded: Loaded, inputs: Inputs) -> Tensor:
    """Random normal values of the shape that was asked for, or that the model says it takes.

    Without `inputs`, timm's own record of the model is asked, then the first convolution for its
    channels; images are 224 pixels wide unless somebody says otherwise.
    """
    sample = random_input(loaded.model, inputs)
    _check_runs(loaded, sample)
    return sample


def random_input(model: nn.Module, inputs: Inputs) -> Tensor:
    """The same, without running the model on it."""
    generator = torch.Generator().manual_seed(SEED)
    shape = checked_size(inputs.shape or _image_shape(model, inputs.size))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(shape, generator=generator).to(dtype)


@torch.inference_mode()
def _check_runs(loaded: Loaded, sample: Tensor) -> None:
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
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    declared: Any = (config.get("input_size") if isinstance(config, dict) else None) or ()
    channels, height, width = declared if len(declared) == 3 else (None, SIZE, SIZE)
    # The record speaks of the pretrained weights; the model may have been built for other images.
    convs = (module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = next(convs, channels)
    if channels is None:
        raise InputError(
            f"no 2-d convolution in {type(model).__name__} says what its input looks like"
            + advice("; give it with {shape}", shape="1,3,224,224")
        )
    return (1, channels, size or height, size or width)


def load_and_check(target: Target, data: ImageData | None, inputs: Inputs) -> tuple[Loaded, Tensor]:
    """Build a MODEL in the form that its weights are of, and make sure that it is fused.

    Returns:
        The net, and an image of the data or random values of the shape that was asked for.
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
    """The data as the net was trained on it, where that was normalised in another way."""
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
    _check_runs(loaded, torch.zeros(2, *data.image_shape))
    image, _ = data.tensors(data.validation, limit=1)
    parameters = (p.dtype for p in loaded.model.parameters() if p.is_floating_point())
    return image.to(next(parameters, torch.float32))
