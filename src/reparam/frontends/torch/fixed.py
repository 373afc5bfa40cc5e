"""Values of a trace that are the same in every call once some of its inputs are fixed."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from reparam.errors import UnsupportedModelError
from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.cut import same
from reparam.frontends.torch.effects import FACTORIES, base_of, is_random, mutated_argument
from reparam.frontends.torch.guards import planned_for
from reparam.frontends.torch.trace import Trace


def fixed_values(
    trace: Trace, names: Collection[str], unseen: Collection[str] = ()
) -> dict[fx.Node, Any]:
    """Compute, as the model does, what follows from fixed inputs and weights alone.

    Args:
        trace: Of a model that reads its fixed inputs as buffers.
        names: The names of these buffers.
        unseen: Paths of modules that do more than the trace shows.

    Raises:
        UnsupportedModelError: The model writes to a fixed input.

    """
    found = _Fixed(trace, names, unseen)
    for node in found.starts - found.constant:
        name = str(node.target).removeprefix("fixed_")
        msg = (
            f"{type(trace.root).__name__} writes to {name}, which would not be the same in the "
            f"next call then; it cannot be fixed"
        )
        raise UnsupportedModelError(msg)
    return found.values()


class _Fixed:
    def __init__(self, trace: Trace, names: Collection[str], unseen: Collection[str]) -> None:
        self._trace = trace
        nodes = list(trace.graph.nodes)
        self._order = {node: order for order, node in enumerate(nodes)}
        self.starts = {n for n in nodes if n.op == "get_attr" and n.target in names}
        self._written = self._writers(nodes)
        lost = {n for n in nodes if self._lies_in(n, unseen)}
        while True:
            self.constant = self._constant(nodes, lost)
            spoilt = self._spoilt()
            if not spoilt:
                break
            lost |= spoilt
        self._depends = set(self.starts)
        for node in nodes:
            if node in self.constant and self._depends.intersection(node.all_input_nodes):
                self._depends.add(node)

    def values(self) -> dict[fx.Node, Any]:
        """Run the operations, each once, in order."""
        known: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in self._order:
                if node in self.constant and all(n in known for n in node.all_input_nodes):
                    try:
                        known[node] = self._run(node, known)
                    except _NotFixedError:
                        continue
        return {node: value for node, value in known.items() if node in self._depends}

    def _run(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            value: Any = functools.reduce(getattr, str(node.target).split("."), self._trace.root)
            return value.clone() if node in self.starts else value
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        target: Any = node.target
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_function":
            return target(*args, **kwargs)
        module = self._trace.module(node)
        if is_builtin(module):
            return module(*args, **kwargs)
        # Nobody has seen what its code does: it may draw, or count its calls.
        twice = []
        for seed in range(2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                twice.append(module(*args, **kwargs))
        if not same(*twice):
            raise _NotFixedError
        return twice[0]

    def _constant(self, nodes: list[fx.Node], lost: set[fx.Node]) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in nodes:
            if node not in lost and self._follows(node, found):
                found.add(node)
        return found

    def _follows(self, node: fx.Node, constant: set[fx.Node]) -> bool:
        """Whether an operation computes with constants alone, and the same each time."""
        if node.op == "get_attr":
            return True
        inputs = node.all_input_nodes
        if node.op in {"placeholder", "output"} or node.target is planned_for or is_random(node):
            return False
        if not inputs and node.target not in FACTORIES:
            return False
        return all(source in constant for source in inputs)

    def _lies_in(self, node: fx.Node, paths: Collection[str]) -> bool:
        around = {call.path for call in self._trace.stacks.get(node, ())}
        if node.op == "call_module":
            around.add(str(node.target))
        return node.op != "get_attr" and not around.isdisjoint(paths)

    def _writers(self, nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
        found: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node in nodes:
            target = mutated_argument(node, self._trace.module)
            if target is not None:
                found[base_of(target, self._trace.module)].append(node)
        return found

    def _spoilt(self) -> set[fx.Node]:
        """Constants in whose memory something else is written, or after they were read."""
        spoilt: set[fx.Node] = set()
        for base, writers in self._written.items():
            sharing = {n for n in self.constant if base_of(n, self._trace.module) is base}
            if not sharing:
                continue
            readers = [u for n in sharing for u in n.users if u not in self.constant]
            first = min((self._order[reader] for reader in readers), default=len(self._order))
            alone = all(w in self.constant and self._order[w] < first for w in writers)
            weights = base.op == "get_attr" and base not in self.starts
            if not alone or weights:
                spoilt |= sharing
        return spoilt


class _NotFixedError(Exception):
    """A module returns something else at every call."""
