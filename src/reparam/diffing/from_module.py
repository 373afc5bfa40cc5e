"""Read a module into normal form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from reparam._support.modules import watch_modules
from reparam.diffing.recording import Recorder, read_run
from reparam.diffing.values import Form

__all__ = ["read_module", "tensors"]


def read_module(module: nn.Module, inputs: Sequence[Tensor]) -> list[Form]:
    """Return the outputs of a module in normal form, for inputs like these; see ``recording``."""

    def run(recorder: Recorder, inputs: list[Tensor]) -> list[Tensor]:
        with watch_modules(module, recorder.path):
            return tensors(module(*inputs))

    return read_run(run, inputs)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in tensors(each)]
    return []
