"""Read the weights of layers, as they are or computed by a parametrization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reparam.frontends.torch.lift import Lifter


def constant_weight(lifter: Lifter, x: Any, weight: Any, bias: Any) -> bool:
    """Whether an operation reads a value, a constant weight and a constant bias or none."""
    constants = lifter.constants
    return (
        lifter.is_value(x)
        and constants.is_tensor(weight)
        and (bias is None or constants.is_tensor(bias))
    )


def module_reader(module: Any) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """Read weight and bias of a layer, parametrized ones in float64."""

    def read() -> tuple[Tensor, Tensor | None]:
        if nn.utils.parametrize.is_parametrized(module):
            return _parametrized(module, "weight"), _parametrized(module, "bias")
        return module.weight, module.bias

    return read


def _parametrized(module: Any, name: str) -> Any:
    """Compute a parametrized tensor (weight norm and the like) in float64, differentiably."""
    if name not in module.parametrizations:
        return getattr(module, name)
    chain = module.parametrizations[name]
    originals = (
        [chain.original]
        if chain.is_tensor
        else [getattr(chain, f"original{k}") for k in range(chain.ntensors)]
    )
    value: Any = [t.to(torch.float64) for t in originals]
    for step in chain:
        numbers = {
            n: t.to(torch.float64) if t.is_floating_point() else t
            for n, t in (*step.named_parameters(), *step.named_buffers())
        }
        value = torch.func.functional_call(
            step, numbers, tuple(value) if isinstance(value, list) else (value,)
        )
    return value
