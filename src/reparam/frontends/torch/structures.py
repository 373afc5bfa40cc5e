"""Containers of traced values: their leaves, how to reach them, how to build them again."""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.frontends.torch.containers import Maker, is_special

Step = tuple[Callable[[Any, Any], Any], Any]
"""How to get from a container to a part of it: ``operator.getitem`` or ``getattr``, and the key."""

_DEEPEST = 2
"""How many objects with attributes lie in one another at the most that are looked into."""

_PLAIN = (Tensor, nn.Module, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)

_LITERALS = (
    str, int, float, bool, complex, type(None), type(...), torch.dtype, torch.device,
    torch.memory_format, torch.layout, torch.Size,
)  # fmt: skip

_SINGLE = frozenset({fx.Node, Tensor, nn.Parameter, str, int, float, bool, type(None)})
"""Kinds of values, most of those that there are, with no others in them."""


class Unwritable(LookupError):  # noqa: N818 (internal; says why code cannot be written)
    """A value cannot be written into the code of a forward."""


def leaves(value: Any, path: tuple[Step, ...] = (), depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield the leaves of a container, each with the steps that lead to it.

    Traced values are yielded as their nodes. Of an object that is no container (an image with its
    mask) only the traced values are yielded, or the object itself if it has none. A dict whose
    entries are attributes as well has each once.
    """
    if type(value) in _SINGLE:
        yield path, value
    elif isinstance(value, fx.Proxy):
        yield path, value.node
    elif isinstance(value, dict | tuple | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            if type(part) in _SINGLE:  # most are, and a generator for each of them takes long
                yield (*path, (operator.getitem, key)), part
            else:
                yield from leaves(part, (*path, (operator.getitem, key)), depth)
        yield from _attributes(value, path, depth)
    elif hasattr(value, "__dict__") and not isinstance(value, _PLAIN) and depth < _DEEPEST:
        held = vars(value).items()
        inside = [leaf for n, p in held for leaf in leaves(p, (*path, (getattr, n)), depth + 1)]
        yield from [found for found in inside if isinstance(found[1], fx.Node)] or [(path, value)]
    else:
        yield path, value


def _attributes(value: Any, path: tuple[Step, ...], depth: int) -> Iterator[tuple[Any, Any]]:
    """The traced values in the attributes of a container that are none of its entries."""
    own = getattr(value, "__dict__", {})
    entries = set(map(id, value.values() if isinstance(value, dict) else value)) if own else ()
    for name, part in own.items():
        for steps, leaf in leaves(part, (*path, (getattr, name)), depth + 1):
            if isinstance(leaf, fx.Node) and id(part) not in entries:
                yield steps, leaf


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in a container, in order."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def snapshot(value: Any) -> Any:
    """A container as it is now, whatever is put into it later."""
    if type(value) in {list, tuple}:
        return type(value)(map(snapshot, value))
    if not isinstance(value, dict):
        return value
    # Not by its constructor, which may want what only its author knows.
    made = type(value).__new__(type(value))
    put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
    taken = {}
    for key, part in value.items():
        taken[id(part)] = snapshot(part)
        put(made, key, taken[id(part)])
    if hasattr(value, "__dict__"):
        vars(made).update({k: taken.get(id(part), part) for k, part in vars(value).items()})
    return made


def contents(value: Any) -> list[tuple[Any, Any]]:
    """The lists and dicts that a container is made of, each with what is in it now."""
    if type(value) not in {list, tuple, dict}:
        return []
    parts = value.values() if type(value) is dict else value
    own = [] if type(value) is tuple else [(value, value.copy())]
    return own + [pair for part in parts for pair in contents(part)]


def put_back(before: list[tuple[Any, Any]]) -> None:
    """Undo what was put into lists and dicts since their contents were noted."""
    for container, held in before:
        container.clear()
        (container.extend if type(container) is list else container.update)(held)


def reach(graph: fx.Graph, start: fx.Node, steps: tuple[Step, ...]) -> fx.Node:
    """Write the code that takes a part out of a container."""
    for function, key in steps:
        start = graph.call_function(function, (start, key))
    return start


def rebuilt_for(  # noqa: C901, PLR0911 (one return per kind of value reads best)
    graph: fx.Graph, value: Any, node_of: Callable[[Any], Any]
) -> Any:
    """Write a container with other values in it.

    Args:
        graph: Where calls that build containers are added.
        value: The container.
        node_of: What a traced value or a module becomes.

    Raises:
        Unwritable: Something in it cannot be written as code.

    """
    if isinstance(value, fx.Proxy):
        return node_of(value.node)
    if isinstance(value, fx.Node | nn.Module):
        return node_of(value)
    if isinstance(value, _LITERALS):
        return value

    def again(part: Any) -> Any:
        return rebuilt_for(graph, part, node_of)

    if isinstance(value, slice):
        return slice(again(value.start), again(value.stop), again(value.step))
    if is_special(value):
        made = tuple(again(part) for part in Maker.parts(value))
        return graph.call_function(Maker.of(value), made)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = [f.name for f in dataclasses.fields(value) if f.init]
        inside = {name: again(getattr(value, name)) for name in entries}
        return graph.call_function(type(value), kwargs=inside)
    if isinstance(value, dict):
        return {key: again(part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return graph.call_function(type(value), tuple(again(part) for part in value))
    for kind in (list, tuple):
        if isinstance(value, kind):
            return kind(again(part) for part in value)
    if isinstance(value, torch._ops.OpOverload):  # noqa: SLF001 (it has no public name)
        return value
    msg = f"a {type(value).__name__} cannot be written into its code"
    raise Unwritable(msg)
