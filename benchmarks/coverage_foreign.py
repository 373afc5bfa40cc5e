"""Models of libraries that are installed by hand for the coverage benchmark.

``data/foreign-models.json`` says of each what makes it and what it is called with. Nothing is
downloaded: models are built from small configurations, and their weights are drawn.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from coverage_models import Entry
from torch import Tensor, nn

__all__ = ["foreign"]

_MODELS = Path(__file__).parent / "data" / "foreign-models.json"


def foreign(which: set[str]) -> Iterator[Entry]:
    """Yield the entries of the chosen libraries."""
    for name, found in json.loads(_MODELS.read_text()).items():
        if name.partition(":")[0] in which:
            yield Entry(
                name,
                _builder(found["model"]),
                0,
                example=_exampler(found["inputs"]),
                batch=4,
                in_float32=False,
            )


def _builder(spec: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model: nn.Module = _made(spec)
        return model

    return build


def _made(spec: Any) -> Any:
    """Read a specification: ``make`` is called with what stands beside it, ``class`` is meant."""
    if isinstance(spec, list):
        return [_made(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    if "class" in spec:
        return _named(spec["class"])
    made = {key: _made(value) for key, value in spec.items() if key != "make"}
    return _named(spec["make"])(**made) if "make" in spec else made


def _named(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _exampler(inputs: Any) -> Callable[[int, int], Any]:
    """Make what a model is called with, of a batch size, larger in space by so much."""

    def example(batch: int, more: int) -> Any:
        rng = torch.Generator().manual_seed(batch + more)
        if isinstance(inputs, dict):
            return {name: _input(spec, batch, more, rng) for name, spec in inputs.items()}
        made = tuple(_input(spec, batch, more, rng) for spec in inputs)
        alone = len(made) == 1 and isinstance(made[0], Tensor)
        return made[0] if alone else made

    return example


def _input(spec: Any, batch: int, more: int, rng: torch.Generator) -> Any:
    if isinstance(spec, list):
        channels, space = spec[:1], spec[1:] or spec
        grown = [size + more for size in space]
        shape = (batch, *(channels if spec[1:] else []), *grown)
        return torch.randn(shape, generator=rng, dtype=torch.float64)
    if "dict" in spec:
        return {name: _input(part, batch, more, rng) for name, part in spec["dict"].items()}
    return _special(spec, batch, more, rng)


def _special(spec: dict[str, Any], batch: int, more: int, rng: torch.Generator) -> Tensor:
    """Token numbers, a mask, or a constant for each of the batch."""
    if "tokens" in spec:
        made = torch.randint(3, 50, (batch, *spec["tokens"]), generator=rng)
        if "last" in spec:
            made[:, -1] = spec["last"]
        return made
    if "ones" in spec:
        return torch.ones(batch, *spec["ones"], dtype=torch.long)
    if "mask" in spec:
        channels, *space = spec["mask"]
        shape = (batch, channels, *(size + more for size in space))
        return (torch.rand(shape, generator=rng) < 0.5).double()
    if "lafs" in spec:
        return 8 * torch.eye(2, 3, dtype=torch.float64).repeat(batch, *spec["lafs"], 1, 1) + 4
    return torch.full((batch,), spec["fill"])
