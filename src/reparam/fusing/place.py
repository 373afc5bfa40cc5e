"""Find the operations of a region in a trace of the block that is to be rewritten."""

from __future__ import annotations

from torch import fx

from reparam.fusing.found import Found
from reparam.graph.ir import Node
from reparam.graph.trace import Key, Trace

__all__ = ["between", "inlined_for", "locate"]


def locate(found: Found, traced: Trace) -> dict[Node, fx.Node]:
    """Find the core operations of a region, in order, and check how they are connected.

    Raises:
        LookupError: One is missing, or reads other values than in the trace that was planned on.

    """
    by_key: dict[Key, fx.Node] = {key: node for node, key in traced.keys.items()}
    ordered = sorted(found.core, key=lambda n: n.order)
    here = {node: by_key[Found.key_of(node)] for node in ordered}
    for node in ordered:
        for value in node.inputs:
            if value in here and here[value] not in here[node].all_input_nodes:
                msg = f"{node!r} reads other values in a trace of the block than in the model's"
                raise LookupError(msg)
    return here


def inlined_for(found: Found) -> set[str]:
    """Paths of the children whose forward must become part of the block's."""
    return {path for node in found.core for path in between(found.block, Found.key_of(node).owner)}


def between(outer: str, inner: str) -> list[str]:
    """Paths of the modules from below ``outer`` down to ``inner``."""
    paths = []
    path = inner
    while path != outer:
        paths.append(path)
        path = path.rpartition(".")[0]
    return paths
