"""Build the new model: a copy in which layers are replaced and a few forwards are rewritten.

A rewritten module keeps its class as its base, its attributes, its methods and the keys of what was
not folded; only its forward is generated from the edited graph. It can be pickled, copied, exported
and compiled like any other module.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import linecache
from collections.abc import Callable, Hashable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, fx, nn

from reparam.frontends.kinds import AnyNorm
from reparam.frontends.torch.copying import TABLES, Copier, fill_graph_module, own_tensor

_FILES = itertools.count()
_GONE = object()
_KEEPS_NOTHING = (AnyNorm,)


class Classes:
    """The classes of the rewritten modules of one model: one for all that do the same."""

    def __init__(self) -> None:
        """Begin with none."""
        self._made: dict[Hashable, type[nn.Module]] = {}

    def of(self, original: type[nn.Module], graph: fx.Graph) -> type[nn.Module]:
        """The class of a module that runs a graph in the place of its own forward."""
        base = rewritten_base(original)
        base = nn.Module if issubclass(base, _KEEPS_NOTHING) else base
        steps = tuple((n.op, n.name, n.target, repr((n.args, n.kwargs))) for n in graph.nodes)
        if (base, steps) not in self._made:
            self._made[base, steps] = with_forward(base, *generated_forward(graph))
        return self._made[base, steps]


class Shell:
    """A module whose forward is to be generated from an edited graph.

    Args:
        original: The user's module; it is read, never changed.
        graph: What the new forward executes; targets are paths relative to ``original``.
        layers: New layers by their path relative to ``original``.
        dropped: Relative paths of modules, parameters and buffers that are folded away.
        inlined: Relative paths of children whose forward is part of ``graph``.
        buffers: New buffers by name.
        classes: Those of the other rewritten modules of the model.

    """

    def __init__(
        self,
        original: nn.Module,
        graph: fx.Graph,
        classes: Classes,
        *,
        layers: dict[str, nn.Module],
        dropped: set[str],
        inlined: set[str],
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Make the empty module, so that others may refer to it while it is filled."""
        self.original = original
        self.graph = graph
        self.layers = layers
        self.dropped = dropped
        # A GraphModule runs what lies in modules that only hold others, without their forwards.
        self.inlined = inlined | {around for path in layers for around in _around(path)}
        self.buffers = buffers or {}
        only = _only_layer(graph, layers)
        if only is None and self._is_emptied():
            only = nn.Identity().eval()
        if only is not None and not _has_hooks(original):
            self.module: nn.Module = with_attributes(only, original)
            self._is_layer = True
            return
        self._is_layer = False
        if isinstance(original, fx.GraphModule):
            self.module = fx.GraphModule.__new__(fx.GraphModule)
            return
        kind = classes.of(type(original), graph)
        self.module = kind.__new__(kind)

    def _is_emptied(self) -> bool:
        """Whether nothing is left of a module: it returns its input and holds nothing else.

        Such a one (a frozen norm that is folded) has no numbers left that its methods could read.
        """
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        output = next(n for n in self.graph.nodes if n.op == "output")
        passes = len(inputs) == 1 and len(self.graph.nodes) == 2 and output.args == (inputs[0],)
        held = {name for table in TABLES for name in vars(self.original)[table]}
        return passes and held <= self.dropped | {"num_batches_tracked"}

    def fill(self, copier: Copier) -> None:
        """Copy what the new module keeps."""
        if self._is_layer:
            return
        kept = {
            name: copier.value(value)
            for name, value in vars(self.original).items()
            if name not in TABLES and name != "forward"  # one of its own would hide the new one
        }
        whole = self.module
        if isinstance(whole, fx.GraphModule):
            self.module, kept = nn.Module(), {}
        vars(self.module).update(kept, **{table: {} for table in TABLES})
        for table in ("_parameters", "_buffers"):
            for name, value in vars(self.original)[table].items():
                if name not in self.dropped:
                    vars(self.module)[table][name] = copier.value(value)
        self.module._buffers.update({n: copier.value(b) for n, b in self.buffers.items()})
        for name, child in self.original._modules.items():
            successor = self._successor(name, child, copier)
            if successor is not _GONE:
                self.module._modules[name] = successor
        self._add_new_layers("", self.module)
        if isinstance(whole, fx.GraphModule):
            tables = {table: vars(self.module)[table] for table in TABLES}
            self.module = fill_graph_module(whole, tables, self.graph)

    def _successor(self, path: str, child: nn.Module | None, copier: Copier) -> Any:
        """What a child of the rewritten module becomes."""
        if path in self.layers:
            return self.layers[path]
        if path in self.inlined and child is not None:
            return self._container(path, child, copier)
        if path in self.dropped or self._is_folded_away(path, child):
            return _GONE
        twin = copier.value(child)
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            self._empty(path, twin)
        return twin

    def _empty(self, path: str, container: nn.Module) -> None:
        """Put the identity where modules of a container that stays were folded away."""
        for name in list(container._modules):
            inner = f"{path}.{name}"
            if inner in self.dropped and inner not in self.layers:
                container._modules[name] = nn.Identity().eval()

    def _container(self, path: str, child: nn.Module, copier: Copier) -> Any:
        """Keep of an inlined child what the new forward still calls or reads."""
        container = nn.Module()
        container.training = False
        for table in ("_parameters", "_buffers"):
            for name, value in vars(child)[table].items():
                if value is not None and self._is_read(f"{path}.{name}"):
                    vars(container)[table][name] = copier.value(value)
        for name, grandchild in child._modules.items():
            inner = f"{path}.{name}"
            if inner in self.layers or inner in self.inlined or self._is_read(inner):
                successor = self._successor(inner, grandchild, copier)
                if successor is not _GONE:
                    container._modules[name] = successor
        self._add_new_layers(path, container)
        empty = not (container._modules or container._parameters or container._buffers)
        return _GONE if empty else container

    def _add_new_layers(self, path: str, module: nn.Module) -> None:
        """Add layers under names that the original did not have."""
        for name, layer in self.layers.items():
            parent, _, last = name.rpartition(".")
            if parent == path:
                module._modules.setdefault(last, layer)

    def _is_folded_away(self, path: str, child: nn.Module | None) -> bool:
        """Whether a child served only to hold numbers that are folded now."""
        if child is None or self._is_read(path):
            return False
        tensors = (*child.named_parameters(), *child.named_buffers())
        held = [name for name, _ in tensors if not name.endswith("num_batches_tracked")]
        return bool(held) and all(f"{path}.{name}" in self.dropped for name in held)

    def _is_read(self, path: str) -> bool:
        targets = {str(n.target) for n in self.graph.nodes if n.op in {"call_module", "get_attr"}}
        return any(t == path or t.startswith(f"{path}.") for t in targets)


def _around(path: str) -> list[str]:
    """Paths of the modules that hold one."""
    return [path[:k] for k, letter in enumerate(path) if letter == "."]


def with_attributes(layer: nn.Module, original: nn.Module) -> nn.Module:
    """Give a layer the plain attributes of the block it replaces, such as YOLO's ``f``."""
    for name, value in vars(original).items():
        plain = isinstance(value, int | float | str | tuple | list | type(None))
        if plain and not name.startswith("_") and not hasattr(layer, name):
            setattr(layer, name, copy.copy(value))
    return layer


def _only_layer(graph: fx.Graph, layers: dict[str, nn.Module]) -> nn.Module | None:
    """The new layer, where a forward does nothing but call it."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    calls = [n for n in graph.nodes if n.op not in {"placeholder", "output"}]
    if len(inputs) != 1 or len(calls) != 1 or calls[0].op != "call_module":
        return None
    output = next(n for n in graph.nodes if n.op == "output")
    if output.args != (calls[0],) or calls[0].args != (inputs[0],):
        return None
    return layers.get(str(calls[0].target))


def _has_hooks(module: nn.Module) -> bool:
    return any(vars(module).get(name) for name in ("_forward_hooks", "_forward_pre_hooks"))


def build(
    model: nn.Module,
    layers: dict[nn.Module, nn.Module],
    shells: list[Shell],
    *,
    shares_weights: bool = False,
) -> nn.Module:
    """Copy a model with some modules replaced; nothing of the result shares memory with it.

    Args:
        model: The user's model.
        layers: Modules of ``model`` and what takes their place, wherever they are.
        shells: Modules of ``model`` whose forward is generated.
        shares_weights: Whether the numbers are shared after all, by a model that is only read.

    """
    memo: dict[int, Any] = {id(old): new for old, new in layers.items()}
    memo.update({id(shell.original): shell.module for shell in shells})
    tensor = (lambda value: value) if shares_weights else own_tensor
    copier = Copier(tensor, keep_hooks=True, memo=memo)
    for shell in shells:
        shell.fill(copier)
    return copier.copy(model).eval()


def rewritten_base(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that a module had before its forward was first rewritten."""
    base: type[nn.Module] = getattr(kind, "_reparam_base", kind)
    return base


def generated_forward(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    """Generate the source of a forward and what its global names stand for."""
    for node in graph.nodes:
        node.type = None
    graph.lint()
    code = graph.python_code("self")
    bindings = {
        name: ("module", value.__name__) if isinstance(value, ModuleType) else ("value", value)
        for name, value in code.globals.items()
        if name in code.src
    }
    return code.src, bindings


def with_forward(base: type[nn.Module], source: str, bindings: dict[str, Any]) -> type[nn.Module]:
    """Derive a class that differs from ``base`` in its forward alone."""
    names = {
        name: importlib.import_module(value) if kind == "module" else value
        for name, (kind, value) in bindings.items()
    }
    file = f"<reparam {base.__name__} {next(_FILES)}>"
    exec(compile(source, file, "exec"), names)  # noqa: S102 (code that torch.fx generated)
    # Tracebacks and inspect.getsource then show the generated forward.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    forward = names["forward"]
    assert isinstance(forward, FunctionType)  # noqa: S101 (fx generates exactly this name)
    forward.__qualname__ = f"{base.__qualname__}.forward"
    forward.__module__ = base.__module__
    reduce_ex = _reducer(base, source, bindings)
    members = {
        "forward": forward,
        "__reduce_ex__": reduce_ex,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_reparam_base": base,
    }
    return type(base.__name__, (base,), members)


def _reducer(
    base: type[nn.Module], source: str, bindings: dict[str, Any]
) -> Callable[[nn.Module, int], tuple[Any, ...]]:
    def __reduce_ex__(self: nn.Module, _protocol: int) -> tuple[Any, ...]:  # noqa: N807
        return _restore, (base, source, bindings), dict(vars(self))

    return __reduce_ex__


def _restore(base: type[nn.Module], source: str, bindings: dict[str, Any]) -> nn.Module:
    """Make an empty module of a rewritten class again, for pickle and copy."""
    kind = with_forward(base, source, bindings)
    return kind.__new__(kind)
