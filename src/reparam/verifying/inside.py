"""What models compute on the way to their outputs: samples of what goes into their activations.

No fold goes past an activation, so that two models that are equal put the same into each. There a
net shows what it does even where its outputs hardly depend on the input, as those of one do that
was never trained, or are cut off by a bounded function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MOST = 512
"""Numbers to keep of one value."""

_LEVEL = 32.0
"""Units in the last place of the largest number that count as no difference."""

_TELLING = 64.0
"""How many times more than the models differ a value has to vary from sample to sample."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Numbers of one value, and those that other samples, or places, have in their place."""

    name: str
    here: Tensor
    there: Tensor
    eps: float


class Inside(TorchFunctionMode):
    """Keep samples of what goes into activations while a model runs."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[_Sample] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0].strip("_")
        if name in _ACTIVATIONS:
            value = args[0] if args else (kwargs or {}).get("input")
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                with torch._C.DisableTorchFunction():  # noqa: SLF001 (no public name)
                    self.samples.append(_sample(name, value))
        return func(*args, **(kwargs or {}))


def agree_inside(expected: Sequence[_Sample], found: Sequence[_Sample], loose: float) -> bool:
    """Whether two runs agree in all that was kept, and it varies somewhere, so that this tells.

    Args:
        expected: Samples of the one run.
        found: Those of the other.
        loose: Largest difference, relative to the largest number, that may be rounding.

    """
    if [one.name for one in expected] != [one.name for one in found]:
        return False
    tells = False
    for left, right in zip(expected, found, strict=True):
        if left.here.shape != right.here.shape:
            return False
        apart = float((left.here - right.here).abs().max())
        size = float(left.here.abs().max())
        varies = float((left.here - left.there).abs().max())
        least = _LEVEL * left.eps * size
        if not (apart <= loose * size and apart <= max(varies / _TELLING, least)):
            return False
        tells = tells or varies > max(least, _TELLING * apart)
    return tells


def _sample(name: str, value: Tensor) -> _Sample:
    here, there = value.detach(), value.detach()
    if value.dim() and len(value) > 1:
        here, there = here[:1], there[-1:]
    elif value.dim() > 3:
        there = there.flip(-1)
    step = max(1, here.numel() // _MOST) | 1  # odd, so that it does not hit one column alone
    here, there = (p.flatten()[::step].to(torch.float64, copy=True) for p in (here, there))
    return _Sample(name, here, there, torch.finfo(value.dtype).eps)


_ACTIVATIONS = frozenset({
    "clamp", "clamp_max", "clamp_min", "clip", "elu", "gelu", "hardsigmoid", "hardswish",
    "hardtanh", "leaky_relu", "log_softmax", "mish", "prelu", "relu", "relu6", "sigmoid", "silu",
    "softmax", "softplus", "tanh",
})  # fmt: skip
