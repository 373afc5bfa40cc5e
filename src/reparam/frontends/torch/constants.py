"""Parameter-only parts of a traced program: what they are, their shapes and their values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.frontends.torch.effects import FACTORIES, is_random
from reparam.frontends.torch.guards import planned_for
from reparam.frontends.torch.trace import Trace
from reparam.frontends.weights import all_finite
from reparam.reasons import Reason, Why


class Constants:
    """The nodes of a trace whose values depend on parameters and buffers alone.

    Blocks that compute their own kernel (weight standardisation, OREPA's sums of branch kernels)
    become plain numbers this way; values are computed in float64, whatever the parameters are.
    """

    def __init__(self, trace: Trace) -> None:
        """Find them, in program order."""
        self._trace = trace
        self._nodes: set[fx.Node] = set()
        for node in trace.graph.nodes:
            if self._is_constant(node):
                self._nodes.add(node)
        # What is written in place is not constant, nor is what was computed from it.
        for target in self._nodes.intersection(trace.changes.values()):
            self._drop(target)

    def __contains__(self, value: object) -> bool:
        """Whether a node is constant; literals are."""
        return not isinstance(value, fx.Node) or value in self._nodes

    def is_tensor(self, value: object) -> bool:
        """Whether a value is a constant tensor, not a literal."""
        return isinstance(value, fx.Node) and value in self._nodes

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a constant tensor, found without computing it."""
        known = self._trace.values.get(node)
        if not isinstance(known, Tensor):
            known = self._evaluate(node, {}, "meta")
        return tuple(known.shape)

    def value(self, node: fx.Node) -> Tensor:
        """Value of a constant tensor, computed in float64 and differentiable."""
        result = self._evaluate(node, {}, None)
        if not isinstance(result, Tensor):
            result = torch.as_tensor(result)
        return result

    def operations(self, node: fx.Node) -> int:
        """Number of operations that compute a constant at every call of the program."""
        if node.op == "get_attr":
            return 0
        return 1 + sum(self.operations(source) for source in node.all_input_nodes)

    def sources(self, node: fx.Node) -> set[Tensor]:
        """The parameters and buffers that a constant is computed from."""
        if node.op == "get_attr":
            value = self._attribute(node)
            return {value} if isinstance(value, Tensor) else set()
        return {t for source in node.all_input_nodes for t in self.sources(source)}

    def reads(self, values: Sequence[fx.Node]) -> Collection[Any]:
        """What of the model's own numbers constants are computed from."""
        return {tensor for value in values for tensor in self.sources(value)}

    def stored(self, values: Sequence[fx.Node]) -> int:
        """How many numbers the model stores for constants."""
        return sum(tensor.numel() for tensor in self.reads(values))

    def doubt(self, values: Sequence[fx.Node], what: str) -> Reason | None:
        """Why constants cannot be the numbers of a layer, if so."""
        reads = set(self.reads(values))
        if any(not t.is_floating_point() for t in reads if t.dim() > 0):
            return Why.NOT_FLOATING(what=what)
        return None if all_finite(reads) else Why.NOT_FINITE(what=what)

    def _is_constant(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return isinstance(self._attribute(node), Tensor)
        if node.op not in {"call_function", "call_method"} or node.target is planned_for:
            return False
        sources = node.all_input_nodes
        if not sources and node.target not in FACTORIES:
            return False
        if not all(source in self._nodes for source in sources):
            return False
        return node not in self._trace.changes and not is_random(node)

    def _attribute(self, node: fx.Node) -> object:
        """The parameter or buffer that a node reads."""
        return self._trace.held[str(node.target)]

    def _drop(self, node: fx.Node) -> None:
        self._nodes.discard(node)
        for user in node.users:
            if user in self._nodes:
                self._drop(user)

    def _evaluate(self, node: fx.Node, known: dict[fx.Node, Any], device: str | None) -> Any:
        if node in known:
            return known[node]
        if node.op == "get_attr":
            value = self._attribute(node)
            if isinstance(value, Tensor):
                if value.is_floating_point() and device is None:
                    value = value.to(torch.float64)
                elif device is not None:
                    value = value.to(device)
            result = value
        else:
            args, kwargs = fx.map_arg(
                (node.args, node.kwargs), lambda n: self._evaluate(n, known, device)
            )
            if node.op == "call_method":
                result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                result = node.target(*args, **kwargs)  # type: ignore[operator]
                if device is None and isinstance(result, Tensor) and node.target in FACTORIES:
                    result = result.to(torch.float64)
        known[node] = result
        return result
