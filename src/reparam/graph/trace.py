"""Trace modules with torch.fx, naming every operation so that it can be found again.

A module that cannot be traced by itself stays one opaque call in its parent, so that one clever
module does not hide the rest of a model. Operations get a :class:`Key` that does not depend on how
much of the module tree was inlined: what a trace of the whole model finds can be rewritten in a
trace of one block.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Call", "Key", "Trace", "TraceFailure", "trace"]

_MAX_OPAQUE = 64
"""Modules left as opaque calls before a trace is given up."""


@dataclass(frozen=True, slots=True)
class Key:
    """The static name of an operation: the same in every trace and every call that holds it.

    Attributes:
        owner: Path of the module whose forward holds the operation; for a module call its parent.
        target: What is called: a module's path, a function, a method or an attribute.
        count: Which of the calls of ``target`` in one call of ``owner``.
        is_module: Whether a module is called.

    """

    owner: str
    target: str
    count: int
    is_module: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one module in a trace: its path and which of its calls it is."""

    path: str
    number: int


@dataclass(eq=False)
class Trace:
    """A traced module.

    Attributes:
        root: The module that was traced (a copy that shares tensors with the user's).
        path: Path of ``root`` in the whole model.
        graph: What it executes.
        keys: The name of every node.
        stacks: The module calls around every node, outermost first, beginning with ``root``.
        opaque: Paths of modules that could not be traced, each with the reason.

    """

    root: nn.Module
    path: str
    graph: fx.Graph
    keys: dict[fx.Node, Key]
    stacks: dict[fx.Node, tuple[Call, ...]]
    opaque: dict[str, str] = field(default_factory=dict)

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a module call calls."""
        return self.root.get_submodule(str(node.target))


class TraceFailure(Exception):  # noqa: N818 (internal; never reaches a user)
    """The root itself cannot be traced."""


def trace(
    root: nn.Module,
    path: str = "",
    *,
    inline: Callable[[str], bool] = lambda _path: True,
    opaque: dict[str, str] | None = None,
) -> Trace:
    """Trace a module, inlining those of its children for which ``inline(path)`` holds.

    Raises:
        TraceFailure: The forward of ``root`` itself cannot be traced; the message says why.

    """
    known = dict(opaque or {})
    for _ in range(_MAX_OPAQUE):
        tracer = _Tracer(path, inline, set(known))
        try:
            graph = tracer.trace(root, concrete_args=_defaults(root))
        except Exception as error:
            # Any exception of the user's forward on proxies only says: not traceable.
            culprit = tracer.failed_in
            reason = _first_line(error)
            if culprit is None or culprit == path:
                raise TraceFailure(reason) from error
            known[culprit] = reason
            continue
        return Trace(root, path, graph, tracer.keys, tracer.stacks, known)
    msg = f"more than {_MAX_OPAQUE} modules inside cannot be traced"
    raise TraceFailure(msg)


def join(parent: str, name: str) -> str:
    """Join two module paths."""
    return f"{parent}.{name}" if parent and name else parent or name


class _Tracer(fx.Tracer):
    """Record module calls, keep buffers symbolic, and iterate what has a known length."""

    def __init__(self, path: str, inline: Callable[[str], bool], opaque: set[str]) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self.keys: dict[fx.Node, Key] = {}
        self.stacks: dict[fx.Node, tuple[Call, ...]] = {}
        self.failed_in: str | None = None
        self._base = path
        self._inline = inline
        self._opaque = opaque
        self._calls: Counter[str] = Counter()
        self._stack: list[Call] = [Call(path, 0)]
        self._targets: Counter[tuple[Call, str]] = Counter()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        path = join(self._base, module_qualified_name)
        return path in self._opaque or is_builtin(m) or not self._inline(path)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        name = self.path_of_module(m)
        path = join(self._base, name)
        if self.is_leaf_module(m, name):
            return self.create_proxy("call_module", name, args, kwargs)
        call = Call(path, self._calls[path])
        self._calls[path] += 1
        self._stack.append(call)
        try:
            return forward(*args, **kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = path
            raise
        finally:
            self._stack.pop()

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        owner = self._stack[-1]
        is_module = kind == "call_module"
        named = join(self._base, str(target)) if is_module else f"{kind}:{_name(target)}"
        count = self._targets[owner, named]
        self._targets[owner, named] += 1
        self.keys[node] = Key(owner.path, named, count, is_module)
        self.stacks[node] = tuple(self._stack)
        return node

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        length = _known_length(obj.node)
        if length is None:
            return super().iter(obj)
        return iter([obj[k] for k in range(length)])


def is_builtin(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's own with its forward unchanged (not a container)."""
    kind = type(module)
    if isinstance(module, nn.Sequential) or kind.__module__.startswith("torch.nn.modules.container"):
        return False
    defined_in = getattr(kind.forward, "__module__", "")
    own = kind.__module__.startswith(("torch.nn", "torch.ao.nn"))
    return own or (defined_in.startswith("torch.nn") and _overrides_nothing(kind))


def _overrides_nothing(kind: type[nn.Module]) -> bool:
    """Whether a subclass of a PyTorch layer leaves all methods that its forward calls alone."""
    base = next(c for c in kind.__mro__ if c.__module__.startswith("torch.nn"))
    if base is nn.Module:
        return False
    changed = {name for c in kind.__mro__[: kind.__mro__.index(base)] for name in vars(c)}
    watched = {name for name, value in vars(base).items() if inspect.isfunction(value)}
    harmless = {"__init__", "extra_repr", "reset_parameters", "_load_from_state_dict"}
    return not (changed & (watched | {"__call__", "weight", "bias"})) - harmless


def _defaults(root: nn.Module) -> dict[str, Any]:
    """Arguments left at their default are traced as constants; the trace asserts them."""
    try:
        parameters = inspect.signature(root.forward).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = (type(None), bool, int, float, str)
    return {
        p.name: p.default
        for p in parameters
        if p.default is not inspect.Parameter.empty and isinstance(p.default, plain)
    }


def _known_length(node: fx.Node) -> int | None:
    """How many values an operation returns that a program may iterate over."""
    name = _name(node.target) if node.op != "call_module" else ""
    arguments = [*node.args[1:], *node.kwargs.values()]
    if name.endswith("unbind") or not name.endswith(("chunk", "split", "split_with_sizes")):
        return None
    if name.endswith("chunk"):
        return arguments[0] if arguments and isinstance(arguments[0], int) else None
    sizes = arguments[0] if arguments else None
    return len(sizes) if isinstance(sizes, list | tuple) else None


def _name(target: Any) -> str:
    if isinstance(target, str):
        return target
    return getattr(target, "__name__", None) or torch.typename(target)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
