"""Calling a model with the three forms of example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

Runnable = Callable[..., Any]


def call(model: Runnable, example_inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of arguments or a dict of keyword arguments.

    The model gets copies: one that writes into its inputs leaves the next one the same numbers.
    """
    example_inputs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple):
        return model(*example_inputs)
    return model(example_inputs)
