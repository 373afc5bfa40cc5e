"""Which operation of an exported graph is which layer of the net: told by the weights they hold."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from reparam.lab.quantizing.layers import Layer

__all__ = ["operations_of"]


class _WeightIndex:
    """Finds the layer whose float32 weight has the same numbers in the same order.

    Exporters rename layers, and reshape the weights of grouped convolutions or transpose those of
    linear maps, but do not change their numbers. Of layers with equal weights, the first one that
    is asked for is the first that runs.

    Args:
        layers: Layers by path, in running order.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._names: dict[str, list[str]] = defaultdict(list)
        for name, layer in layers.items():
            weight = layer.weight.detach().to(torch.float32).cpu()
            keys = {_digest(weight.contiguous().numpy())}
            if isinstance(layer, nn.Linear):
                keys.add(_digest(weight.t().contiguous().numpy()))
            for key in keys:
                self._names[key].append(name)
        self._taken: set[str] = set()

    def find(self, weight: Any) -> str | None:
        """Return the path of the layer with the numbers of this array, once for each layer."""
        for name in self._names.get(_digest(weight), ()):
            if name not in self._taken:
                self._taken.add(name)
                return name
        return None


def operations_of(
    layers: Mapping[str, Layer], operations: Iterable[tuple[str, Any]], wanted: Collection[str]
) -> dict[str, str]:
    """Return the names of a graph's operations by the layers that they compute.

    Args:
        layers: Layers by path, in running order.
        operations: Names of operations that may be layers, with their weights as arrays.
        wanted: Layers that have to be found.

    Raises:
        ExportError: One of these is not in the graph.
    """
    index = _WeightIndex(layers)
    found: dict[str, str] = {}
    for operation, weight in operations:
        name = index.find(weight)
        if name is not None:
            found[name] = operation
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ExportError(
            f"the exported graph has no operation with the weights of {', '.join(missing)}, so it "
            "cannot be kept in float; nothing was written"
        )
    return found


def _digest(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
