"""Small helpers that every engine needs: inputs, outputs, and the mode a model is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from reparam._support.arguments import TENSORS, in_training, shapes_of
from reparam.errors import InputError, TrainingModeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def as_tuple(example_inputs: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the positional inputs of a model as a tuple of tensors.

    Raises:
        InputError: Something in it is not a tensor, or there is nothing in it.

    >>> len(as_tuple(torch.zeros(1, 3, 8, 8)))
    1
    """
    TENSORS.check("example_inputs", example_inputs)
    inputs = (
        (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    )
    if not inputs:
        raise InputError("example_inputs is empty; give the model's inputs as a tensor or a tuple")
    for position, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"example_inputs[{position}] is a {type(value).__name__}; "
                "the inputs must be tensors, given as one tensor or a tuple of them"
            )
    if not any(value.numel() for value in inputs):
        raise InputError(f"example_inputs is {shapes_of(inputs)}, which holds no number")
    return inputs


def with_batch(inputs: Sequence[torch.Tensor], batch: int) -> tuple[torch.Tensor, ...]:
    """Return the inputs cut or repeated along dimension 0 to ``batch`` entries.

    >>> with_batch((torch.arange(3),), 5)[0].tolist()
    [0, 1, 2, 0, 1]
    """
    sized = []
    for value in inputs:
        if value.dim() == 0 or value.shape[0] == 0:
            raise InputError(
                f"an input of shape {tuple(value.shape)} has no batch dimension to set to {batch}"
            )
        index = torch.arange(batch, device=value.device) % value.shape[0]
        sized.append(value.detach().index_select(0, index))
    return tuple(sized)


def as_arrays(inputs: Sequence[torch.Tensor]) -> list[Any]:
    """Return the inputs as arrays of numpy, which other engines take."""
    return [value.detach().cpu().contiguous().numpy() for value in inputs]


def one_by_one(
    run: Callable[[list[torch.Tensor]], list[torch.Tensor]], inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Run each sample of a batch alone, for files that take one, and join the outputs."""
    samples = [run([x[i : i + 1] for x in inputs]) for i in range(len(inputs[0]))]
    return [torch.cat(values) for values in zip(*samples, strict=True)]


def flat_outputs(output: Any) -> list[torch.Tensor]:
    """Return the tensors of a model's output, in order, detached and on the CPU."""
    return [
        leaf.detach().cpu() for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)
    ]


def check_eval(model: nn.Module, what: str) -> None:
    """Raise unless the model computes the same thing every time.

    Raises:
        TrainingModeError: The model, a normalisation or a dropout in it is in training mode.
    """
    where = in_training(model, whole=True)
    if where is not None:
        raise TrainingModeError(
            f"{what} needs a model in eval mode, and {where!r} of {type(model).__name__} is in "
            "training mode; call model.eval() first"
        )
