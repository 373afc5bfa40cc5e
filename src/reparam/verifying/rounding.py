"""How far rounding alone brings a model from itself: the measure that tolerances come from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from reparam.verifying.calling import call
from reparam.verifying.outputs import Difference, differences, tensors


@torch.no_grad()
def rounding_of(
    reference: nn.Module, example_inputs: Any, expected: Sequence[Tensor]
) -> Difference:
    r"""Measure the rounding error of a reference: its differences from itself.

    It is run in float64, and twice with noise of one unit in the last place behind every operation
    and on the numbers that it reads. What computes the same with other numbers differs by both:
    in :math:`\sum_i w_i x_i` its rounded weights count by :math:`\epsilon \sum_i |w_i x_i|`, which
    noise on the sum alone, :math:`\epsilon |\sum_i w_i x_i|`, misses where the terms cancel.
    """
    worst = Difference()
    if any(t.is_floating_point() and t.dtype != torch.float64 for t in expected):
        try:
            twin = copy.deepcopy(reference).to(torch.float64)
            wide = list(tensors(call(twin, _as_double(example_inputs))))
            worst = worst.worse(differences(expected, wide))
        except (RuntimeError, TypeError, ValueError):
            # A model with a fixed type inside cannot run in float64; the noise below remains.
            pass
    for seed in range(2):
        with _RoundingNoise(seed):
            noisy = list(tensors(call(reference, example_inputs)))
        worst = worst.worse(differences(expected, noisy))
    return worst


class _RoundingNoise(TorchFunctionMode):
    """Change weights and results of arithmetic by up to one unit in the last place."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]  # ATen's have an overload's name
        if name not in _ARITHMETIC:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(self._weight, (args, kwargs or {}))
        return self._jittered(func(*args, **kwargs))

    def _weight(self, value: Any) -> Any:
        return self._jittered(value) if isinstance(value, nn.Parameter) else value

    def _jittered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        with torch._C.DisableTorchFunction():  # noqa: SLF001 (no public name)
            noise = torch.rand(value.shape, generator=self._generator, dtype=torch.float64)
            factor = 1 + torch.finfo(value.dtype).eps * (2 * noise - 1)
            return (value.double() * factor.to(value.device)).to(value.dtype)


_ARITHMETIC = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "linear", "batch_norm", "layer_norm", "group_norm", "matmul", "bmm", "einsum", "add", "sub",
    "mul", "div", "truediv", "__add__", "__mul__", "__sub__", "__truediv__", "softmax", "gelu",
    "silu", "avg_pool2d", "adaptive_avg_pool2d", "mean", "scaled_dot_product_attention", "baddbmm",
    "addmm", "mm", "convolution",
}  # fmt: skip


def _as_double(value: Any) -> Any:
    def widened(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(torch.float64) if is_float else leaf

    return tree_map(widened, value)
