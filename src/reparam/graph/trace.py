"""Trace modules with torch.fx, naming every operation so that it can be found again.

A module that cannot be traced by itself stays one opaque call in its parent, so that one clever
module does not hide the rest of a model. Operations get a :class:`Key` that does not depend on how
much of the module tree was inlined: what a trace of the whole model finds can be rewritten in a
trace of one block.
"""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from reparam.graph.builtin import is_builtin
from reparam.graph.containers import Maker, is_special
from reparam.graph.running import Arguments, is_parameter_only, run_until
from reparam.graph.skeleton import on_meta, shared_copy

__all__ = ["Call", "Key", "Trace", "TraceFailure", "join", "trace"]

_MAX_OPAQUE = 64
"""Modules left as opaque calls before a trace is given up."""


@dataclass(frozen=True, slots=True)
class Key:
    """The static name of an operation: the same in every trace and every call that holds it.

    Attributes:
        owner: Path of the module whose forward holds the operation; for a module call its parent.
        target: What is called: a module's path, or a function, method or attribute together with
            the parameters and literals that it reads.
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
    example: Arguments | None = None,
) -> Trace:
    """Trace a module, inlining those of its children for which ``inline(path)`` holds.

    Args:
        root: What to trace.
        path: Its path in the whole model.
        inline: Says of a path whether that child's operations become part of the trace.
        opaque: Paths known to be untraceable, with the reasons.
        example: Arguments to run with, without numbers, where a program iterates over a value whose
            length only a run can tell (``split`` by a size).

    Raises:
        TraceFailure: The forward of ``root`` itself cannot be traced; the message says why.

    """
    known = dict(opaque or {})
    # Arguments that the example passes stay arguments where the code only computes with them.
    passed = _passed(root, example)
    for _ in range(_MAX_OPAQUE):
        tracer = _Tracer(path, inline, set(known), example)
        # A fresh copy each time: forwards may keep what they compute, proxies then, in attributes.
        twin = shared_copy(root)
        try:
            graph = tracer.trace(twin, concrete_args=_defaults(twin, passed))
        except Exception as error:
            # Any exception of the user's forward on proxies only says: not traceable.
            culprit = tracer.failed_in
            reason = _first_line(error)
            if culprit is not None and culprit != path:
                known[culprit] = reason
            elif passed:
                passed = set()
            else:
                raise TraceFailure(reason) from error
            continue
        _keep_argument_names(twin, graph)
        return Trace(twin, path, graph, tracer.names, tracer.stacks, known)
    msg = f"more than {_MAX_OPAQUE} modules inside cannot be traced"
    raise TraceFailure(msg)


def _keep_argument_names(root: nn.Module, graph: fx.Graph) -> None:
    """Undo torch.fx's renaming of arguments with defaults, which callers give by name."""
    try:
        names = list(inspect.signature(root.forward).parameters)
    except (TypeError, ValueError):
        return
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    if len(inputs) == len(names):
        for node, name in zip(inputs, names, strict=True):
            if not str(node.target).startswith("*"):
                node.target = name


def join(parent: str, name: str) -> str:
    """Join two module paths."""
    return f"{parent}.{name}" if parent and name else parent or name


class _Tracer(fx.Tracer):
    """Record module calls, keep buffers symbolic, and iterate what has a known length."""

    def __init__(
        self,
        path: str,
        inline: Callable[[str], bool],
        opaque: set[str],
        example: Arguments | None,
    ) -> None:
        super().__init__()
        self._example = example
        self.proxy_buffer_attributes = True
        self.trace_asserts = True
        self.names: dict[fx.Node, Key] = {}
        self.stacks: dict[fx.Node, tuple[Call, ...]] = {}
        self.failed_in: str | None = None
        self._tensors: dict[int, str] | None = None
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

    def create_arg(self, a: Any) -> Any:
        """Keep the class of a container, and what else it holds."""
        if not is_special(a):
            return super().create_arg(a)
        parts = tuple(self.create_arg(part) for part in Maker.parts(a))
        return self.create_node("call_function", Maker.of(a), parts, {})

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        owner = self._stack[-1]
        is_module = kind == "call_module"
        named = join(self._base, str(target)) if is_module else self._signature(kind, target, node)
        count = self._targets[owner, named]
        self._targets[owner, named] += 1
        self.names[node] = Key(owner.path, named, count, is_module)
        self.stacks[node] = tuple(self._stack)
        return node

    def _signature(self, kind: str, target: Any, node: fx.Node) -> str:
        """Tell operations of one kind apart by the parameters and literals that they read.

        Whether a size is a number or a traced value can differ from trace to trace; the literals
        keep arithmetic on sizes from being counted among the operations on tensors.
        """
        values, _ = tree_flatten((node.args, node.kwargs))
        reads = []
        for value in values:
            if isinstance(value, fx.Node):
                known = value.op == "get_attr"
                reads.append(join(self._base, str(value.target)) if known else "*")
            else:
                reads.append(repr(value))
        return f"{kind}:{_name(target)}({', '.join(reads)})"

    def getattr(
        self,
        attr: str,  # noqa: ARG002 (the base class calls it so)
        attr_val: Any,
        parameter_proxy_cache: dict[str, Any],
    ) -> Any:
        """Read a parameter or buffer as a proxy; found by identity, not by a search of the tree."""
        if isinstance(attr_val, Tensor):
            name = self._tensor_names().get(id(attr_val))
            if name is not None:
                if name not in parameter_proxy_cache:
                    parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
                return parameter_proxy_cache[name]
        return attr_val

    def _length_by_running(self, node: fx.Node) -> int | None:
        """Run what is traced so far without numbers, and look how long a value is."""
        if is_parameter_only(node):
            arguments: Arguments = ((), {})
        elif self._example is not None:
            arguments = self._example
        else:
            return None
        assert isinstance(self.root, nn.Module)  # noqa: S101 (only modules are traced here)
        try:
            value = run_until(node, on_meta(self.root), arguments)
            return len(value)
        except Exception:  # noqa: BLE001 (any error of the user's code: the length is not known)
            return None

    def _tensor_names(self) -> dict[int, str]:
        if self._tensors is None:
            tensors = (*self.root.named_parameters(), *self.root.named_buffers())
            self._tensors = {id(tensor): name for name, tensor in tensors}
        return self._tensors

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlaceProxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        length = _known_length(obj.node)
        if length is None:
            length = self._length_by_running(obj.node)
        if length is None:
            return super().iter(obj)
        proxy: Any = obj
        return iter([proxy[k] for k in range(length)])


class _InPlaceProxy(fx.Proxy):
    """Record ``a += b`` as what it is; a plain proxy records ``a = a + b``.

    Every other name of ``a`` sees the change, which a residual branch may read.
    """

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)

    def __getattr__(self, name: str) -> Any:
        # Sizes of parameters are constants, so that code may branch on them.
        if name in {"shape", "ndim"} and is_parameter_only(self.node):
            value = self._on_meta()
            if isinstance(value, Tensor):
                return getattr(value, name)
        return super().__getattr__(name)

    def size(self, *dims: int) -> Any:
        if is_parameter_only(self.node):
            value = self._on_meta()
            if isinstance(value, Tensor):
                return value.size(*dims)
        return self.tracer.create_proxy("call_method", "size", (self, *dims), {})

    def __len__(self) -> int:
        if is_parameter_only(self.node):
            return len(self._on_meta())
        return super().__len__()

    def _on_meta(self) -> Any:
        root = getattr(self.tracer, "root", None)
        assert isinstance(root, nn.Module)  # noqa: S101 (only modules are traced here)
        return run_until(self.node, on_meta(root), ((), {}))

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


def _passed(root: nn.Module, example: Arguments | None) -> set[str]:
    """Names of the arguments that an example gives as numbers or strings."""
    if example is None:
        return set()
    try:
        bound = inspect.signature(root.forward).bind(*example[0], **example[1]).arguments
    except (TypeError, ValueError):
        return set()
    return {k for k, v in bound.items() if isinstance(v, int | float | str) and v is not True}


def _defaults(root: nn.Module, passed: set[str]) -> dict[str, Any]:
    """Arguments left at their default are traced as constants; the trace asserts them."""
    try:
        parameters = inspect.signature(root.forward).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {
        p.name: p.default
        for p in parameters
        if p.name not in passed and isinstance(p.default, type(None) | bool | int | float | str)
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
