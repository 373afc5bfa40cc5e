"""Size and type of a value that nothing else needs, told from values that are there anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.frontends.kinds import AnyConv, AnyNorm, AnyTransposedConv
from reparam.frontends.torch.arguments import bind
from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.trace import Trace

Size = int | tuple[fx.Node, int]
"""A number, or the size of a value along one of its axes."""

_EACH = (
    AnyNorm, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU,
    nn.Hardsigmoid, nn.Mish, nn.ELU, nn.PReLU, nn.Identity, nn.modules.dropout._DropoutNd,  # noqa: SLF001
)  # fmt: skip
"""Modules that return as many numbers as they are given, in the same places."""


def is_size_read(node: fx.Node) -> bool:
    """Whether an operation reads the sizes of a value, one of them, or its type or device."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in {"shape", "dtype", "device"}
    axes = [a for a in node.args[1:] if not isinstance(a, int)]
    return node.op == "call_method" and node.target == "size" and not axes and not node.kwargs


def sizes_of(
    trace: Trace, node: fx.Node, is_there: Callable[[fx.Node], bool]
) -> tuple[Size, ...] | None:
    """The sizes of a value in every call, as numbers and sizes of others; None if not known.

    These others have its type and lie on its device.

    Args:
        trace: A trace with the shapes of its values.
        node: The value.
        is_there: Whether a value may be read.

    """
    known = trace.values.get(node)
    if not isinstance(known, Tensor):
        return None
    if is_there(node):
        return tuple((node, axis) for axis in range(known.dim()))

    def of(source: Any) -> tuple[Size, ...] | None:
        return sizes_of(trace, source, is_there) if isinstance(source, fx.Node) else None

    if node.op == "call_module":
        return _behind(trace.module(node), of(node.args[0] if node.args else None))
    if node.op == "call_function" and node.target in {torch.cat, torch.concat}:
        parts, axis = bind(node, ("tensors", "dim"), (None, 0))
        return _joined([of(part) for part in parts], axis) if type(axis) is int else None
    return None


def _behind(module: nn.Module, before: tuple[Size, ...] | None) -> tuple[Size, ...] | None:
    """The sizes behind a module."""
    if before is None or not is_builtin(module):
        return None
    if isinstance(module, AnyConv):
        return _after(module, before)
    return before if isinstance(module, _EACH) else None


def _after(module: Any, before: tuple[Size, ...]) -> tuple[Size, ...] | None:
    """The sizes behind a convolution that keeps those of its image."""
    dims = module.weight.dim() - 2
    if isinstance(module, AnyTransposedConv) or len(before) != dims + 2:
        return None
    same = module.padding == "same" or all(
        step == 1 and not isinstance(module.padding, str) and 2 * pad == gap * (size - 1)
        for step, pad, gap, size in zip(
            module.stride, module.padding, module.dilation, module.kernel_size, strict=False
        )
    )
    return (before[0], module.out_channels, *before[2:]) if same else None


def _joined(parts: list[tuple[Size, ...] | None], axis: int) -> tuple[Size, ...] | None:
    """The sizes of values that are joined along an axis on which theirs are plain numbers."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    lengths = [part[axis] for part in known]
    if not all(isinstance(length, int) for length in lengths):
        return None
    sizes = list(known[0])
    sizes[axis] = sum(length for length in lengths if isinstance(length, int))
    return tuple(sizes)
