"""Run the old and the new model side by side, once, before the new one is handed out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from reparam.errors import VerificationError
from reparam.fusing.discover import Discovery
from reparam.graph.faithful import with_numbers
from reparam.graph.running import Arguments
from reparam.graph.skeleton import runnable_copy
from reparam.verifying import largest_difference, tensors, verify

__all__ = ["compare_runs"]

_LOOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 1e-1}
"""Differences, relative to the largest output, below which no closer look is needed.

The folds themselves are compared in float64; this run is to notice a wrongly connected graph.
"""


@torch.no_grad()
def compare_runs(discovery: Discovery, fused: nn.Module) -> None:
    """Compare every module that was traced with its successor, on the inputs of its trace.

    Raises:
        VerificationError: One of them returns something else.

    """
    for path, call in discovery.calls.items():
        successor = _find(fused, path)
        if successor is None or _covered(path, discovery.calls):
            continue
        old = runnable_copy(discovery.model.get_submodule(path))
        new = runnable_copy(successor)
        arguments = _on_device(with_numbers(call), old)
        expected, found = (list(tensors(_run(m, arguments))) for m in (old, new))
        if not _roughly_equal(expected, found) and not _equal_up_to_noise(old, new, arguments):
            msg = (
                f"fusing {path or type(old).__name__} would change what it returns by "
                f"{largest_difference(expected, found):.1e}; nothing is returned. Please report "
                f"this model: its folds agree in float64, so its graph was edited wrongly"
            )
            raise VerificationError(msg)


def _covered(path: str, calls: dict[str, Arguments]) -> bool:
    """Whether a module that holds this one is compared as well."""
    return any(path != p and (p == "" or path.startswith(f"{p}.")) for p in calls)


def _run(model: nn.Module, arguments: Arguments) -> Any:
    """Run on a copy of the arguments, random operations with the same seed."""
    positional, named = with_numbers(arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(*positional, **named)


def _roughly_equal(expected: list[Tensor], found: list[Tensor]) -> bool:
    if [t.shape for t in expected] != [t.shape for t in found]:
        return False
    for left, right in zip(expected, found, strict=True):
        scale = float(left.abs().max()) if left.numel() else 0.0
        if not largest_difference([left], [right]) <= _LOOSE.get(left.dtype, 0.0) * scale:
            return False
    return True


def _equal_up_to_noise(old: nn.Module, new: nn.Module, arguments: Arguments) -> bool:
    """Look closer: models that amplify rounding differ by what their own rounding explains."""
    inputs = arguments[0] if not arguments[1] else None
    if inputs is None and not arguments[0]:
        return verify(old, new, arguments[1]).ok
    return inputs is not None and verify(old, new, inputs).ok


def _on_device(arguments: Arguments, model: nn.Module) -> Arguments:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return arguments
    moved: Arguments = tree_map(
        lambda v: v.to(parameter.device) if isinstance(v, Tensor) else v, arguments
    )
    return moved


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
