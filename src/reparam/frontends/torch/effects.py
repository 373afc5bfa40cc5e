"""Side effects of traced operations: what is changed in place, what is random."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils._device import _device_constructors

FACTORIES = frozenset(_device_constructors())
"""Functions that make tensors of plain numbers."""

_IN_PLACE_OPERATORS = {
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.iand,
    operator.ior,
    operator.ixor,
    operator.setitem,
}

_RANDOM = ("rand", "bernoulli", "multinomial", "normal_", "dropout", "uniform_", "feature_dropout")

# Operations whose result shares memory with their first argument.
_VIEWS = {
    "alias", "as_strided", "chunk", "contiguous", "detach", "diagonal", "expand", "expand_as",
    "flatten", "getattr", "getitem", "hsplit", "movedim", "narrow", "permute", "ravel", "reshape",
    "reshape_as", "select", "split", "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t",
    "tensor_split", "transpose", "type_as", "to", "unbind", "unflatten", "unfold", "unsqueeze",
    "view", "view_as", "vsplit", "dropout", "float", "double", "half",
}  # fmt: skip

_VIEW_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)  # noqa: SLF001


def mutated_argument(
    node: fx.Node, module_of: Callable[[fx.Node], nn.Module] | None = None
) -> fx.Node | None:
    """Find the value that an operation changes in place, or None if it changes none."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(first, fx.Node):
        return None
    if node.op == "call_method":
        name = str(node.target)
        in_place = (name.endswith("_") and not name.endswith("__")) or name in _DUNDER_IN_PLACE
        return first if in_place else None
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        in_place = (
            node.target in _IN_PLACE_OPERATORS
            or (name.endswith("_") and not name.endswith("__"))
            or bool(node.kwargs.get("inplace"))
            or _inplace_by_position(node)
        )
        out = node.kwargs.get("out")
        if isinstance(out, fx.Node):
            return out
        return first if in_place else None
    if node.op == "call_module" and module_of is not None:
        module = module_of(node)
        parts = module.modules() if module._modules else (module,)
        changes = any(getattr(m, "inplace", False) is True for m in parts)
        return first if changes else None
    return None


def is_random(node: fx.Node) -> bool:
    """Whether an operation draws random numbers."""
    name = str(getattr(node.target, "__name__", node.target))
    return name.startswith(_RANDOM) or (name.endswith(("_like",)) and "rand" in name)


def metadata_read(node: fx.Node) -> str | None:
    """Say what an operation reads of a tensor that is not its contents.

    Returns:
        ``"kind"`` for rank, type and device, ``"shape"`` for sizes, None for the contents.

    """
    if node.op == "call_function" and node.target is len:
        return "shape"
    if node.op == "call_function" and node.target is getattr:
        name = node.args[1] if len(node.args) > 1 else None
    elif node.op == "call_method":
        name = str(node.target)
    else:
        return None
    if name in {
        "ndim",
        "dim",
        "dtype",
        "device",
        "is_cuda",
        "requires_grad",
        "layout",
        "ndimension",
    }:
        return "kind"
    return "shape" if name in {"shape", "size", "numel"} else None


def base_of(node: fx.Node, module_of: Callable[[fx.Node], nn.Module] | None = None) -> fx.Node:
    """Follow views back to the value whose memory they share."""
    seen = node
    while True:
        name = str(getattr(seen.target, "__name__", seen.target))
        changed = mutated_argument(seen, module_of)
        if changed is not None:
            seen = changed
            continue
        if seen.op == "call_module" and module_of is not None:
            first = seen.args[0] if seen.args else None
            if not isinstance(module_of(seen), _VIEW_MODULES) or not isinstance(first, fx.Node):
                return seen
            seen = first
            continue
        if seen.op not in {"call_function", "call_method"} or name not in _VIEWS:
            return seen
        first = seen.args[0] if seen.args else None
        if not isinstance(first, fx.Node):
            return seen
        seen = first


_DUNDER_IN_PLACE = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__"}

_INPLACE_POSITION = {
    "relu": 1, "relu6": 1, "selu": 1, "celu": 2, "elu": 2, "silu": 1, "mish": 1, "hardswish": 1,
    "hardsigmoid": 1, "hardtanh": 3, "leaky_relu": 2, "threshold": 3, "dropout": 3,
}  # fmt: skip
"""Where ``inplace`` stands among the positional arguments of ``torch.nn.functional``."""


def _inplace_by_position(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", "")
    position = _INPLACE_POSITION.get(name)
    return (
        position is not None
        and getattr(node.target, "__module__", "") == "torch.nn.functional"
        and len(node.args) > position
        and node.args[position] is True
    )


def known_length(node: fx.Node) -> int | None:
    """How many values an operation returns that a program may iterate over."""
    name = name_of(node.target) if node.op != "call_module" else ""
    arguments = [*node.args[1:], *node.kwargs.values()]
    if name.endswith("unbind") or not name.endswith(("chunk", "split", "split_with_sizes")):
        return None
    if name.endswith("chunk"):
        return arguments[0] if arguments and isinstance(arguments[0], int) else None
    sizes = arguments[0] if arguments else None
    return len(sizes) if isinstance(sizes, list | tuple) else None


def name_of(target: Any) -> str:
    """The name of what a node calls."""
    if isinstance(target, str):
        return target
    return getattr(target, "__name__", None) or torch.typename(target)
