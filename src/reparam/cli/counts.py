"""What one inference of a model executes and stores, counted once for every command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reparam.deploy.benchmarking import profile

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["counted"]


def counted(model: nn.Module, sample: torch.Tensor) -> dict[str, Any]:
    """Convolutions and norms executed, parameters, multiply-adds and bytes moved.

    The keys are fields of :class:`reparam.report.results.ModelRecord`.
    """
    found = profile(model, sample)
    norms = sum(times for name, times in found.operators.items() if "batch_norm" in name)
    return {
        "convolutions": found.operators.get("convolution", 0),
        "norms": norms,
        "parameters": found.parameters,
        "multiply_adds": found.multiply_adds,
        "bytes_moved": found.bytes_moved,
    }
