"""Which layers read what a layer writes, with nothing in between that a scale cannot pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx, nn
from torch.nn import functional

from reparam.errors import UnsupportedModelError
from reparam.frontends.torch.trace import Trace, TraceFailure, straight_trace
from reparam.lab.quantizing.layers import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Neighbours", "neighbours"]

# What commutes with a positive factor for each channel: f(s x) = s f(x), channel by channel.
_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
_FUNCTIONS = frozenset(
    {
        torch.relu, torch.relu_, functional.relu, functional.relu_, functional.leaky_relu,
        functional.dropout, functional.max_pool1d, functional.max_pool2d, functional.max_pool3d,
        torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
        functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d,
        functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d,
        functional.adaptive_avg_pool3d,
    }
)  # fmt: skip
_METHODS = frozenset({"relu", "relu_", "contiguous"})


@dataclass(frozen=True)
class Neighbours:
    """A layer, and all layers that read it, through maps that a scale of its channels passes.

    Attributes:
        source: Path of the layer that writes.
        readers: Paths of the layers that read.
    """

    source: str
    readers: tuple[str, ...]


def neighbours(model: nn.Module) -> tuple[Neighbours, ...]:
    """Return all places where a scale can move from one layer into the next, in running order.

    Between the two there may be ReLU, pooling, dropout, flattening and zero padding. Where anything
    else reads the value too (a sum with a shortcut, an output), or a layer is called more than
    once, there is no such place.

    Raises:
        UnsupportedModelError: The model cannot be traced.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    >>> [(place.source, *place.readers) for place in neighbours(net.eval())]
    [('0', '2'), ('2', '3')]
    """
    try:
        traced = straight_trace(model)
    except TraceFailure as failure:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be traced ({failure}), so it is not known which layer "
            "reads which; quantize it without equalisation"
        ) from failure
    calls = Counter(str(node.target) for node in traced.graph.nodes if _is_layer(traced, node))
    owners = _owners(traced.root)
    found = []
    for node in traced.graph.nodes:
        if not _is_layer(traced, node):
            continue
        readers = list(_readers(traced, node))
        paths = [str(node.target), *(str(reader.target) for reader in readers if reader)]
        alone = all(calls[path] == 1 and owners[id(_weight(traced, path))] == 1 for path in paths)
        if readers and None not in readers and alone:
            found.append(Neighbours(paths[0], tuple(dict.fromkeys(paths[1:]))))
    return tuple(found)


def _readers(traced: Trace, node: fx.Node) -> Iterator[fx.Node | None]:
    """Yield the layers that read a value, and None for everything else that does."""
    for user in node.users:
        if _is_layer(traced, user):
            yield user
        elif _passes(traced, user, node):
            yield from _readers(traced, user)
        else:
            yield None
    if not node.users:
        yield None


def _is_layer(traced: Trace, node: fx.Node) -> bool:
    return node.op == "call_module" and type(traced.module(node)) in KINDS


def _passes(traced: Trace, user: fx.Node, value: fx.Node) -> bool:
    """Say whether an operation commutes with positive factors for the channels of its input."""
    if not user.args or user.args[0] is not value or user.all_input_nodes != [value]:
        return False
    if user.op == "call_module":
        module = traced.module(user)
        return isinstance(module, _MODULES) or (
            isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        )
    if user.op == "call_function":
        return user.target in _FUNCTIONS or (user.target is torch.flatten and _from_one(user))
    return user.target in _METHODS or (user.target == "flatten" and _from_one(user))


def _from_one(node: fx.Node) -> bool:
    """Say whether a flatten joins all dimensions behind the batch: channel after channel."""
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return (start, end) == (1, -1)


def _owners(root: nn.Module) -> Counter[int]:
    """Count by how many layers each weight is held; a tied one belongs to several."""
    layers = (module for module in root.modules() if type(module) in KINDS)
    return Counter(id(layer.weight) for layer in layers)


def _weight(traced: Trace, path: str) -> object:
    return traced.root.get_submodule(path).weight
