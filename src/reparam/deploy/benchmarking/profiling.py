"""Count what a model computes and moves, from the operators it executes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reparam.deploy.benchmarking.execution import execute

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn


@dataclass(frozen=True)
class Profile:
    """What one inference computes and moves, for the batch of the example inputs.

    Attributes:
        multiply_adds: Of convolutions, matrix products and attention; other operators count 0.
        parameters: Trainable or frozen parameters, each counted once.
        buffers: Elements of the buffers (running statistics and the like).
        bytes_moved: Bytes read and written by all operators; each operand of each operator once,
            as if nothing stayed in a cache.
        operators: How often each operator ran, by name.
    """

    multiply_adds: int
    parameters: int
    buffers: int
    bytes_moved: int
    operators: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as a dictionary that JSON can hold."""
        return asdict(self)


def profile(model: nn.Module, example_inputs: torch.Tensor | Sequence[torch.Tensor]) -> Profile:
    """Run a model once and count multiply-adds, parameters and bytes moved.

    Raises:
        InputError: The inputs are not tensors.
        TrainingModeError: The model is in training mode.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False).eval()
        >>> profile(conv, torch.zeros(1, 3, 10, 10)).multiply_adds
        21600
    """
    ops = execute(model, example_inputs).ops
    return Profile(
        multiply_adds=sum(op.multiply_adds for op in ops),
        parameters=sum(p.numel() for p in model.parameters()),
        buffers=sum(b.numel() for b in model.buffers()),
        bytes_moved=sum(op.bytes_moved for op in ops),
        operators=dict(Counter(op.op for op in ops).most_common()),
    )
