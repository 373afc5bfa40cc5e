"""Read a module: run it, and see what it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from reparam._support.modules import watch_modules
from reparam.diffing.recording import Recorder, record
from reparam.diffing.tape import Tape
from reparam.errors import UnsupportedModelError


def read_module(module: nn.Module, inputs: Sequence[Tensor]) -> Tape:
    """Return what a module does with inputs like these; see ``recording``."""

    def run(recorder: Recorder, inputs: list[Tensor]) -> list[Tensor]:
        with watch_modules(module, recorder.path):
            return tensors(module(*inputs))

    return record(run, inputs)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a result, in order.

    Raises:
        UnsupportedModelError: It holds something else, which would go unnoticed.

    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in tensors(each)]
    if value is None:
        return []
    raise UnsupportedModelError(f"a result that is a {type(value).__name__} is not compared")
