"""Trace a model, in parts where it must be, and find the shapes of its values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from reparam.frontends.kinds import AnyBatchNorm
from reparam.frontends.torch.eager import guess_calls, inputs_of
from reparam.frontends.torch.frames import join
from reparam.frontends.torch.running import Arguments
from reparam.frontends.torch.skeleton import on_meta
from reparam.frontends.torch.trace import Trace, TraceFailure, straight_trace

BATCH = 32
"""Images in a batch where no example says."""

_SIZES = (2, 1, 0, 3)
"""The order in which guesses of an input's size are tried: 224 pixels first."""


def traces_of(module: nn.Module, path: str) -> Iterator[Trace]:
    """Trace a model, and what of it cannot be traced in parts."""
    modules = dict(module.named_modules())
    norms = {join(path, name) for name, m in modules.items() if isinstance(m, AnyBatchNorm)}
    try:
        traced = straight_trace(module, path, norms)
    except TraceFailure:
        broken = [path]
    else:
        yield traced
        broken = [where for where in traced.opaque if where not in norms]
    for where in broken:
        inner = modules[
            where[len(path) + 1 :] if path and where != path else where if where != path else ""
        ]
        for child_name, child in inner.named_children():
            yield from traces_of(child, join(where, child_name))


def shapes_in(traced: Trace, example: Any) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes of values, from a run without numbers."""
    for call in _calls(traced, example):
        recorder = _Shapes(on_meta(traced.root), traced.graph)
        try:
            with torch.no_grad():
                recorder.run(*inputs_of(traced, traced.root, call))
        except Exception:  # noqa: BLE001, S112 (any error of the user's code: the next guess)
            continue
        return recorder.shapes
    return {}


def _calls(traced: Trace, example: Any) -> list[Arguments]:
    if isinstance(example, dict):
        calls: list[Arguments] = [((), example)]
    elif example is not None:
        calls = [(example if isinstance(example, tuple) else (example,), {})]
    else:
        guesses = guess_calls(traced)
        calls = [tree_map(_as_batch, guesses[k]) for k in _SIZES if k < len(guesses)]
    return tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, calls)  # type: ignore[no-any-return]


def _as_batch(value: Any) -> Any:
    return value.new_empty(BATCH, *value.shape[1:]) if isinstance(value, Tensor) else value


class _Shapes(fx.Interpreter):
    def __init__(self, twin: nn.Module, graph: fx.Graph) -> None:
        super().__init__(twin, graph=graph, garbage_collect_values=True)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        norm = n.op == "call_module" and isinstance(self.fetch_attr(str(n.target)), AnyBatchNorm)
        # Without numbers, batch statistics take PyTorch long.
        result = self.fetch_args_kwargs_from_env(n)[0][0] if norm else super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result
