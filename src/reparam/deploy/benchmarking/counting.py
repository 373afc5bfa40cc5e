"""What one operator costs: multiply-adds, and bytes read and written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["bytes_moved", "multiply_adds"]

_Formula: TypeAlias = Callable[[tuple[Any, ...], Any], int]


def _convolution(args: tuple[Any, ...], output: Any) -> int:
    """Each output (input, if transposed) element meets every weight of its channel."""
    x, weight, transposed = args[0], args[1], args[6]
    positions = x.numel() if transposed else output.numel()
    return int(positions * math.prod(weight.shape[1:]))


def _product(args: tuple[Any, ...], _: Any) -> int:
    """(..., m, k) times (..., k, n)."""
    a, b = args[-2], args[-1]
    columns = b.shape[-1] if b.dim() > 1 else 1
    return int(a.numel() * columns)


def _product_after_bias(args: tuple[Any, ...], output: Any) -> int:
    return _product(args[1:3], output)


def _attention(args: tuple[Any, ...], _: Any) -> int:
    """Queries (..., l, e) with keys (..., s, e), then with values (..., s, v)."""
    query, key, value = args[:3]
    return int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


_FORMULAS: dict[str, _Formula] = {
    "convolution": _convolution,
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "dot": _product,
    "addmm": _product_after_bias,
    "addmv": _product_after_bias,
    "baddbmm": _product_after_bias,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
}


def multiply_adds(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """Return the multiply-adds of a convolution, matrix product or attention; 0 for the rest.

    >>> a, b = torch.zeros(2, 3), torch.zeros(3, 5)
    >>> multiply_adds(torch.ops.aten.mm.default, (a, b), a @ b)
    30
    """
    formula = _FORMULAS.get(func._schema.name.partition("::")[2])  # noqa: SLF001 - no accessor
    return formula(args, output) if formula else 0


def bytes_moved(func: Any, arguments: Sequence[Any], results: Sequence[Any]) -> int:
    """Return the bytes an operator reads and writes, each tensor once and caches left aside.

    Views and fresh empty tensors move nothing.

    >>> x = torch.zeros(4)
    >>> bytes_moved(torch.ops.aten.relu.default, [x], [x.relu()])
    32
    >>> bytes_moved(torch.ops.aten.view.default, [x, 2, 2], [x.view(2, 2)])
    0
    """
    if func.is_view or func._schema.name.startswith("aten::empty"):  # noqa: SLF001 - no accessor
        return 0
    return sum(_nbytes(x) for x in (*arguments, *results) if isinstance(x, torch.Tensor))


def _nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes a tensor covers; an expanded dimension is stored once."""
    stored = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(stored) * tensor.element_size()
