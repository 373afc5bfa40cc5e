"""The deployment formats: those of the engines, and files of weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reparam._support import optional
from reparam.deploy.engines import Format, Settings, engine_names, get_engine
from reparam.deploy.engines.pytorch import TorchRunner
from reparam.errors import InputError
from reparam.frontends.torch.copying import own_copy

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from reparam.deploy.engines import Runner
    from reparam.deploy.engines.program import Axes, Conversion


def _write_weights(conversion: Conversion, path: Path) -> Axes:
    """Write the state dict; shapes do not matter to it, so everything may vary."""
    safetensors = optional.require(
        "safetensors.torch", extra="deploy", purpose="writing .safetensors"
    )
    # Tied weights are written under each of their names: the format has no sharing.
    tensors = {
        k: v.detach().cpu().clone().contiguous() for k, v in conversion.model.state_dict().items()
    }
    path.write_bytes(safetensors.save(tensors, metadata={"format": "pt", **conversion.metadata}))
    return tuple({} for _ in conversion.inputs)


def _load_weights(path: Path, model: nn.Module) -> Runner:
    """Load the file into a copy of the model whose own weights are gone."""
    safetensors = optional.require(
        "safetensors.torch", extra="deploy", purpose="reading .safetensors"
    )
    blank = own_copy(model)
    with torch.no_grad():
        for value in blank.state_dict().values():
            value.fill_(torch.nan if value.is_floating_point() else 0)
    blank.load_state_dict(safetensors.load_file(str(path)), strict=True)
    return TorchRunner(blank, Settings())


def _weights_metadata(path: Path) -> dict[str, str]:
    safetensors = optional.require("safetensors", extra="deploy", purpose="reading .safetensors")
    with safetensors.safe_open(str(path), framework="pt") as handle:
        return dict(handle.metadata() or {})


_WEIGHTS = Format(
    "safetensors", ".safetensors", "eager", _write_weights, _weights_metadata, ("safetensors",),
    read=_load_weights,
)  # fmt: skip


def formats() -> tuple[Format, ...]:
    """Return the formats :func:`reparam.export` writes."""
    engines = map(get_engine, engine_names())
    return (_WEIGHTS, *(entry for engine in engines for entry in engine.formats))


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of the formats, each once."""
    return tuple(dict.fromkeys(entry.suffix for entry in formats()))


def find_format(path: Path, backend: str | None = None) -> Format:
    """Return the format of a path.

    Raises:
        InputError: No format has that suffix, or none of that suffix has that backend.
    """
    of_suffix = [entry for entry in formats() if entry.suffix == path.suffix.lower()]
    if not of_suffix:
        raise InputError(
            f"{path.name!r} has the suffix {path.suffix!r}, which is no export format; "
            f"known suffixes: {', '.join(suffixes())}"
        )
    for entry in of_suffix:
        if entry.backend == backend:
            return entry
    backends = ", ".join(repr(entry.backend) for entry in of_suffix)
    raise InputError(f"{path.suffix} has no backend {backend!r}; its backends: {backends}")
