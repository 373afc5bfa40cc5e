"""What traces say of convolutions: which norm alone reads their output, what their readers do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from reparam.frontends.kinds import BATCH_NORMS
from reparam.frontends.torch.frames import Key, join
from reparam.frontends.torch.skeleton import hooked_modules, shared_copy
from reparam.frontends.torch.trace import Trace, TraceFailure, straight_trace


def following_norms(model: nn.Module) -> dict[str, str]:
    """Find the batch norms that can be made part of the convolution before them.

    A pair is a convolution and a batch norm with running statistics that run once each, the norm
    right on the convolution's output, which nothing else reads; neither has hooks.

    Returns:
        Names of the norms by the name of the convolution. Empty where the model cannot be traced.

    """
    hooked = set(hooked_modules(model))
    pairs = dict(pair for traced in _traces(shared_copy(model), "") for pair in _pairs(traced))
    return {conv: norm for conv, norm in pairs.items() if conv not in hooked and norm not in hooked}


def read_by_others(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that code computes with outside of the layer that holds them.

    Of parts that cannot be traced nothing is known.
    """
    return frozenset(
        join(traced.path, str(node.target))
        for traced in _traces(shared_copy(model), "")
        for node in traced.graph.nodes
        if node.op == "get_attr"
    )


def other_code(model: nn.Module, wide: nn.Module, changed: Collection[str]) -> str | None:
    """Path of a module whose code does something else in ``wide``, outside of the changed modules.

    Code may look at what its layers are (``isinstance(self.norm, nn.BatchNorm2d)``).
    """
    gone = {id(model.get_submodule(path)) for path in changed}
    every = model.named_modules(remove_duplicate=False)
    paths = [path for path, module in every if id(module) in gone]
    before, after = (_calls(shared_copy(one), paths) for one in (model, wide))
    return min((key.owner for key in (before - after) + (after - before)), default=None)


def _calls(model: nn.Module, changed: Collection[str]) -> Counter[Key]:
    """The operations outside of the changed modules, by their names."""

    def is_inside(path: str) -> bool:
        return any(one in {"", path} or path.startswith(f"{one}.") for one in changed)

    keys = (key for traced in _traces(model, "") for key in traced.keys.values())
    return Counter(key for key in keys if not is_inside(key.target) and not is_inside(key.owner))


def _traces(module: nn.Module, path: str) -> Iterator[Trace]:
    """Trace a model, or the largest parts of it that can be traced."""
    try:
        yield straight_trace(module, path)
    except TraceFailure:
        for name, child in module.named_children():
            yield from _traces(child, join(path, name))


def _pairs(traced: Trace) -> Iterator[tuple[str, str]]:
    calls = Counter(
        id(traced.module(node)) for node in traced.graph.nodes if node.op == "call_module"
    )
    for node in traced.graph.nodes:
        following = _only_reader(node)
        if following is None:
            continue
        conv, norm = traced.module(node), traced.module(following)
        once = calls[id(conv)] == calls[id(norm)] == 1
        if isinstance(conv, _ConvNd) and _is_foldable(norm) and once:
            yield join(traced.path, str(node.target)), join(traced.path, str(following.target))


def _only_reader(node: fx.Node) -> fx.Node | None:
    """Return the one module call that reads the output of a module call, and nothing else does."""
    if node.op != "call_module" or len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    return reader if reader.op == "call_module" and reader.args == (node,) else None


def _is_foldable(norm: nn.Module) -> bool:
    plain = type(norm) in (*BATCH_NORMS, nn.SyncBatchNorm) and isinstance(norm, _BatchNorm)
    return plain and norm.running_mean is not None and norm.running_var is not None
