"""``torch.compile(model, backend="reparam")``: fold what is compiled, then compile what is left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor

from reparam.errors import InputError, ReparamError
from reparam.fusing import FoldWarning, plan

Compiled = Callable[..., Any]
Compiler = Callable[[fx.GraphModule, Sequence[Any]], Compiled]


def backend(
    graph: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    **_: object,
) -> Compiled:
    """Compile a graph of TorchDynamo with everything folded that folds exactly.

    It is registered under the name ``reparam``; ``options={"inner": ...}`` names what compiles the
    folded graph: ``"inductor"``, which is the default, ``"eager"``, or any other backend.

    Weights become constants, as in Inductor's freezing. They are looked at before every call, and
    folded anew where one was written to. Where gradients are recorded nothing folds, and a warning
    says so: compile for ``torch.inference_mode()`` or ``torch.no_grad()``.

    Args:
        graph: What TorchDynamo captured; it is only read.
        inputs: Its inputs, weights among them.
        options: See above.

    Raises:
        InputError: An option has another name, or the inner backend is not known.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> fast = torch.compile(net, backend=backend, options={"inner": "eager"})
    >>> x = torch.randn(1, 3, 8, 8)
    >>> with torch.inference_mode():
    ...     torch.testing.assert_close(fast(x), net(x))

    """
    compiler = _inner(dict(options or {}))
    weights = _weights(graph, inputs)
    if torch.is_grad_enabled() and any(inputs[index].requires_grad for index in weights):
        _warn(
            "gradients are recorded here, and folded weights are constants; call the compiled "
            "model under torch.inference_mode() or torch.no_grad()"
        )
    elif weights:
        try:
            return _Folded(graph, weights, inputs, compiler)
        except ReparamError as error:
            _warn(str(error))
    return compiler(graph, inputs)


def _warn(why: str) -> None:
    warnings.warn(f"nothing was folded: {why}", FoldWarning, stacklevel=3)


_STATIC = "_dynamo_static_input_type"
"""How TorchDynamo marks inputs that are parameters and buffers of the model."""


def _inner(options: dict[str, Any]) -> Compiler:
    inner: Any = options.pop("inner", "inductor")
    if options:
        names = ", ".join(map(repr, options))
        raise InputError(
            f"torch.compile's backend reparam has no option {names}; it has 'inner', the backend "
            f"that compiles what was folded"
        )
    if callable(inner):
        made: Compiler = inner
        return made
    known = torch._dynamo.list_backends(exclude_tags=())  # noqa: SLF001
    if inner not in known or inner == "reparam":
        raise InputError(
            f"options={{'inner': {inner!r}}} names no backend of torch.compile to compile with; "
            f"known here: {', '.join(name for name in known if name != 'reparam')}"
        )
    found: Compiler = torch._dynamo.lookup_backend(inner)  # type: ignore[assignment]  # noqa: SLF001
    return found


def _weights(graph: fx.GraphModule, inputs: Sequence[Any]) -> list[int]:
    """The positions of parameters and buffers among the inputs, where they have numbers."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return [
        index
        for index, (place, value) in enumerate(zip(places, inputs, strict=True))
        if isinstance(value, Tensor)
        and not isinstance(value, FakeTensor)
        and _STATIC in (place.meta.get("tensor_dict") or {})
    ]


class _Folded:
    """A compiled graph that was folded, and is folded anew when a weight was written to."""

    def __init__(
        self,
        graph: fx.GraphModule,
        weights: Sequence[int],
        inputs: Sequence[Any],
        compiler: Compiler,
    ) -> None:
        self._graph, self._weights = graph, weights
        self._fused, self._read = _fused(graph, weights, inputs)
        self._seen = _Marks(self._folded(inputs))
        self._compiled = compiler(self._fused, [inputs[index] for index in self._read])

    def __call__(self, *values: Any) -> Any:
        if self._seen.differ_from(self._folded(values)):
            self._fold_anew(values)
            self._seen = _Marks(self._folded(values))
        return self._compiled(*(values[index] for index in self._read))

    def _folded(self, values: Sequence[Any]) -> list[Tensor]:
        return [values[index] for index in self._weights if index not in self._read]

    @torch.no_grad()
    def _fold_anew(self, values: Sequence[Any]) -> None:
        """Give the folded layers, which are compiled, the numbers that they have now."""
        anew, read = _fused(self._graph, self._weights, values)
        old, new = self._fused.state_dict(), anew.state_dict()
        shapes = [{name: t.shape for name, t in state.items()} for state in (old, new)]
        if shapes[0] != shapes[1] or read != self._read:
            # With these numbers something else folds, as where a variance became zero.
            self._compiled, self._read, self._fused = anew, read, anew
            return
        for name, tensor in old.items():
            tensor.copy_(new[name])


class _Marks:
    """What tells weights that were replaced or written to from those that were not."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._marks = [*map(_mark, weights)]
        self._statistics = _statistics(weights)

    def differ_from(self, weights: Sequence[Tensor]) -> bool:
        if self._marks != [*map(_mark, weights)]:
            return True
        now = _statistics(weights)
        return any(not torch.equal(seen, now[kind]) for kind, seen in self._statistics.items())


def _mark(weight: Tensor) -> tuple[int, int, int]:
    # Tensors made in inference mode do not count how often they were written to.
    written = 0 if weight.is_inference() else weight._version  # noqa: SLF001
    return id(weight), weight.data_ptr(), written


def _statistics(weights: Sequence[Tensor]) -> dict[object, Tensor]:
    """Numbers of the running statistics: batch norm in training writes to them uncounted."""
    kinds: dict[object, list[Tensor]] = {}
    for weight in weights:
        if weight.dim() == 1 and (weight.is_inference() or not isinstance(weight, nn.Parameter)):
            kinds.setdefault((weight.device, weight.dtype), []).append(weight.detach())
    return {kind: torch.cat(tensors) for kind, tensors in kinds.items()}


def _fused(
    graph: fx.GraphModule, weights: Sequence[int], inputs: Sequence[Any]
) -> tuple[fx.GraphModule, list[int]]:
    """The graph with its weights as constants, fused, and the positions of what it still reads."""
    model = _with_constants(graph, weights, inputs)
    # Not int(value), which would fix the size.
    example = tuple(
        value.node.hint if isinstance(value, torch.SymInt) else value
        for index, value in enumerate(inputs)
        if index not in weights
    )
    fused = cast("fx.GraphModule", plan(model, example).apply())
    left = [index for index in weights if hasattr(fused, _name(index))]
    _read_again(fused, left)
    return fused, [*(index for index in range(len(inputs)) if index not in weights), *left]


def _name(index: int) -> str:
    return f"input_{index}_of_the_graph"


def _with_constants(
    graph: fx.GraphModule, weights: Sequence[int], inputs: Sequence[Any]
) -> fx.GraphModule:
    """A copy of a graph that holds its weights itself."""
    holder, copied = nn.Module(), fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for index in weights:
        holder.register_buffer(_name(index), inputs[index].detach())
        twins[places[index]] = copied.get_attr(_name(index))
    for node in graph.graph.nodes:
        if node not in twins:
            twins[node] = copied.node_copy(node, twins.__getitem__)
    for name, module in graph.named_children():
        holder.add_module(name, module)
    return fx.GraphModule(holder, copied).eval()


def _read_again(fused: fx.GraphModule, left: Sequence[int]) -> None:
    """Let weights that were not folded be inputs again: what is written to them is not lost."""
    nodes = list(fused.graph.nodes)
    names = {_name(index) for index in left}
    held = {name: [n for n in nodes if n.op == "get_attr" and n.target == name] for name in names}
    last = [node for node in nodes if node.op == "placeholder"][-1:]
    for index in left:
        with fused.graph.inserting_after(*last):
            last = [fused.graph.placeholder(_name(index))]
        for node in held[_name(index)]:
            node.replace_all_uses_with(last[0])
            fused.graph.erase_node(node)
        delattr(fused, _name(index))
    fused.recompile()
