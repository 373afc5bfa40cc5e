"""Models of Hugging Face's transformers from a folder, fused or not; nothing is downloaded."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reparam._support.arguments import NONE, PATH, SHAPES, takes
from reparam._support.optional import require
from reparam.checkpoints.files import listed, read_weights
from reparam.errors import CheckpointError, InputError
from reparam.fusing import plan

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from torch import Tensor

_WEIGHTS = "model.safetensors"
_SIZE = 224


def build(folder: str | os.PathLike[str]) -> nn.Module:
    """Return the model that the ``config.json`` of a folder describes, with new weights.

    Raises:
        InputError: There is no such folder or file, or transformers does not know the model.
        MissingExtraError: transformers is not installed.

    """
    directory = Path(folder)
    if not (directory / "config.json").is_file():
        raise InputError(
            f"there is no {directory / 'config.json'}; give the folder that save_pretrained wrote. "
            f"Nothing is downloaded here: huggingface_hub.snapshot_download does that"
        )
    package = require("transformers", extra="hf", purpose=f"Building hf:{folder}")
    try:
        config = package.AutoConfig.from_pretrained(directory, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        why = str(error).strip().partition("\n")[0]
        raise InputError(f"transformers cannot read {directory / 'config.json'}: {why}") from error
    names = config.architectures or []
    found = next((getattr(package, name) for name in names if hasattr(package, name)), None)
    if names and found is None:
        raise InputError(
            f"transformers {package.__version__} has no model {' or '.join(names)}, which "
            f"{directory / 'config.json'} is for; no code from the folder is run here"
        )
    model = package.AutoModel.from_config(config) if found is None else found(config)
    assert isinstance(model, nn.Module)  # noqa: S101 (for the type checker)
    return model


@takes(folder=PATH, example_inputs=SHAPES | NONE)
def load_pretrained(folder: str | os.PathLike[str], example_inputs: Any = None) -> nn.Module:
    """Read what ``save_pretrained`` wrote, of a fused model too, which ``from_pretrained`` cannot.

    ``from_pretrained`` builds the class, whose layers are not those of the fused model; it would
    leave most of them with random weights. Here the new instance is fused first, where the weights
    say so, and everything has to match.

    Args:
        folder: Holds ``config.json`` and, unless the weights are to be new, ``*.safetensors``.
        example_inputs: As for :func:`reparam.plan`, where the model is a fused one. By default an
            image of the size that the config tells, or the model's ``dummy_inputs``.

    Returns:
        The model in eval mode: of its own class, which returns its own ``ModelOutput``.

    Raises:
        InputError: As for :func:`build`.
        CheckpointError: The weights are of another model.
        MissingExtraError: transformers or safetensors is not installed.

    """
    directory = Path(folder)
    model = build(directory).eval()
    files = _weight_files(directory)
    if not files:
        return model
    tensors = {name: t for file in files for name, t in read_weights(file).tensors.items()}
    missing = _load(model, tensors)
    if not missing:
        return model
    example = _example(model) if example_inputs is None else example_inputs
    fused = plan(build(directory).eval(), example).apply()
    missing = _load(fused, tensors)
    if missing:
        raise CheckpointError(
            f"{directory} does not hold the weights of {type(model).__name__}, fused or not; "
            f"{len(missing)} do not match, {listed(missing)}"
        )
    return fused


def _weight_files(directory: Path) -> list[Path]:
    """The files of the weights: one, or those that an index lists."""
    index = directory / f"{_WEIGHTS}.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [directory / name for name in dict.fromkeys(names)]
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    other = next(iter(sorted(directory.glob("pytorch_model*.bin"))), None)
    if other is not None:
        raise InputError(
            f"{other} is a pickle, which is not run here; load it with transformers and save it "
            f"again, which writes {_WEIGHTS}"
        )
    return []


@torch.no_grad()
def _load(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Load all weights, or none; return the names that do not match."""
    held = model.state_dict(keep_vars=True)
    names = {name: name for name in held} if held.keys() & tensors.keys() == tensors.keys() else {}
    names = names or _saved_names(model)
    given = {names.get(name, name): tensor for name, tensor in tensors.items()}
    loaded = {held[name].data_ptr() for name in given if name in held}
    odd = [
        name
        for name, tensor in held.items()
        if (given[name].shape != tensor.shape if name in given else tensor.data_ptr() not in loaded)
    ]
    odd += [name for name in given if name not in held]
    if odd:
        return odd
    dtypes = {t.dtype for t in given.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        model.to(next(iter(dtypes)))
    model.load_state_dict(given, strict=False)  # what is tied is stored once
    return []


def _saved_names(model: nn.Module) -> dict[str, str]:
    """Names under which transformers stores weights, which may be those of an older version."""
    numbers = {float(k): name for k, name in enumerate(model.state_dict())}
    marks = {name: torch.tensor([number]) for number, name in numbers.items()}
    with tempfile.TemporaryDirectory() as folder, _quietly():
        model.save_pretrained(folder, state_dict=marks)  # type: ignore[operator]
        saved = read_weights(Path(folder) / _WEIGHTS).tensors
    return {
        name: numbers[mark.item()]
        for name, mark in saved.items()
        if mark.numel() == 1 and mark.item() in numbers
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Let nothing be shown of a file that is soon gone."""
    logging = require("transformers.utils.logging", extra="hf", purpose="Reading its names")
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def _example(model: Any) -> dict[str, Tensor]:
    """Inputs that a model takes, as far as it tells."""
    if model.main_input_name != "pixel_values":
        return dict(model.dummy_inputs)
    config = model.config
    size = getattr(config, "image_size", None) or _SIZE
    sides = [size, size] if isinstance(size, int) else [*size]
    return {"pixel_values": torch.randn(1, getattr(config, "num_channels", 3), *sides)}
