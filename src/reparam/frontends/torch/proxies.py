"""Values of a trace as the code of a model meets them: symbolic, and plain where the code looks."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import operator
import sys
from abc import abstractmethod
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import Any

from torch import Tensor, fx

from reparam.frontends.torch.decisions import Place, unpacked
from reparam.frontends.torch.effects import known_length

UNKNOWN = object()
"""A value that only a run can tell."""


class KnowingTracer(fx.Tracer):
    """A tracer that knows of its values what a real one would say.

    Attributes:
        values: What values are for the example, as far as is known; tensors are without numbers.

    """

    def __init__(self) -> None:
        """Know nothing yet."""
        super().__init__()
        self.values: dict[fx.Node, Any] = {}

    @abstractmethod
    def plain(self, kind: str, target: Callable[..., Any], obj: fx.Proxy) -> Any:
        """The number that the code of a model makes of a value."""

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether a value is known to be a tensor."""
        return isinstance(self.values.get(node), Tensor)

    def count_of(self, node: fx.Node) -> int | None:
        """How many values a value is that an operation returned as a list or tuple."""
        value: Any = self.values.get(node)
        return len(value) if type(value) in {list, tuple} else None

    def may_have(self, node: fx.Node, name: str) -> bool:
        """Whether a value has an attribute, as far as is known."""
        return node not in self.values or hasattr(self.values[node], name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the symbolic value of a node."""
        return TracedValue(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over what has a known length."""
        value = self.values.get(obj.node, UNKNOWN)
        if isinstance(value, dict):
            return iter(list(value))
        if isinstance(value, ValuesView | ItemsView | KeysView):
            return self._entries(obj.node, value)
        if isinstance(value, Tensor):
            length = int(self.plain("call_function", len, obj))
        else:
            known = known_length(obj.node) if value is UNKNOWN else len(value)
            if known is None:
                return super().iter(obj)
            length = known
        proxy: Any = obj
        return iter([proxy[k] for k in range(length)])

    def keys(self, obj: fx.Proxy) -> Any:
        """The keys of a dict that a module returned."""
        return self.values[obj.node].keys()

    def _entries(self, node: fx.Node, view: Any) -> Iterator[Any]:
        """What a view of a dict yields that a module returned."""
        of: Any = self.proxy(node.args[0])  # type: ignore[arg-type]
        keys = list(self.values[of.node])
        if isinstance(view, KeysView):
            return iter(keys)
        return iter([(key, of[key]) if isinstance(view, ItemsView) else of[key] for key in keys])


class TracedValue(fx.Proxy):
    """A value of a trace that says what a real one would say where the tracer knows it.

    It is taken for a tensor where it is one; ``len``, ``int``, ``bool`` and loops over it take the
    value of the example. ``a += b`` is recorded as what it is; a plain proxy records ``a = a + b``,
    but every other name of ``a`` sees the change, which a residual branch may read.
    """

    tracer: KnowingTracer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self.tracer.may_have(self.node, name):
            raise AttributeError(name)
        if name == "ndim" and not self.tracer.is_tensor(self.node):
            return _Rank(self.tracer, getattr, self, name)
        if name in _PROPERTIES:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if name == "requires_grad":
            return False  # as in inference
        return _Attribute(self.tracer, getattr, self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {"tracer", "node", "made_by", "_node"}:
            msg = f"it assigns to .{name} of a tensor"
            raise fx.proxy.TraceError(msg)
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedValue:
        return self

    def __iter__(self) -> Iterator[Any]:
        """Take apart into as many variables as there are, or iterate over what is known."""
        frame = sys._getframe(1)  # noqa: SLF001 (what inspect.currentframe returns)
        count = unpacked(Place(frame.f_code, frame.f_lasti))
        whole: Any = self
        return self.tracer.iter(self) if count is None else iter([whole[k] for k in range(count)])

    def __getitem__(self, index: Any) -> Any:
        """Take what an index says; some of several values that were returned, one by one."""
        count = self.tracer.count_of(self.node) if type(index) is slice else None
        if count is None:
            return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})
        return tuple([self[k] for k in range(*index.indices(count))])

    def __setitem__(self, index: Any, value: Any) -> None:
        if not self.tracer.may_have(self.node, "index_put_"):
            msg = "it puts a value into a list or dict that a call returned"
            raise fx.proxy.TraceError(msg)
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        return int(self.tracer.plain("call_function", len, self))

    def __int__(self) -> int:
        return int(self.tracer.plain("call_function", int, self))

    def __index__(self) -> int:
        return int(self.tracer.plain("call_function", operator.index, self))

    def __float__(self) -> float:
        return float(self.tracer.plain("call_function", float, self))

    def __contains__(self, item: Any) -> bool:
        return bool(self.tracer.create_proxy("call_function", operator.contains, (self, item), {}))

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Lazy(TracedValue):
    """A value that becomes a node when it is first looked at, and often never is."""

    def __init__(self, tracer: KnowingTracer, function: Callable[..., Any], *args: Any) -> None:
        self.tracer, self.made_by = tracer, (function, args)
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The value as a node."""
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", *self.made_by, {}).node
        return self._node


class _Attribute(_Lazy):
    """An attribute that may turn out to be a method."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        root, name = self.made_by[1]
        return self.tracer.create_proxy("call_method", name, (root, *args), kwargs)


class _Rank(_Lazy):
    """The number of dimensions of a value of which nothing is known."""

    def __eq__(self, other: object) -> Any:
        return _IsOfRank(self.tracer, operator.eq, self, other)

    __hash__ = TracedValue.__hash__

    def __repr__(self) -> str:
        return "?"


class _IsOfRank(_Lazy):
    """Whether a value has so many dimensions."""


def is_rank_check(value: object) -> bool:
    """Whether a value says nothing but how many dimensions another one has."""
    return type(value) is _IsOfRank


@contextlib.contextmanager
def taken_for_tensors() -> Iterator[None]:
    """Let ``isinstance(x, torch.Tensor)`` hold of traced tensors, for the code of models alone.

    A class that says the same to everybody (``__class__``) would say it to torch's own code as
    well, which then reads the memory of a tensor where there is none. What records a trace asks
    most of all and knows what it has before it: it keeps the plain function, which is faster.
    """
    plain = builtins.isinstance
    recording = [vars(sys.modules[name]) for name in _RECORDING if name in sys.modules]

    def checked(value: Any, kind: Any) -> bool:
        if plain(value, kind):
            return True
        if type(value) not in _TRACED:  # asked of every value that there is: quickly
            return False
        return value.tracer.is_tensor(value.node) and issubclass(Tensor, kind)

    for names in recording:
        names["isinstance"] = plain
    builtins.isinstance = checked
    try:
        yield
    finally:
        builtins.isinstance = plain
        for names in recording:
            names.pop("isinstance", None)


_RECORDING = (
    *(f"torch.fx.{name}" for name in ("_symbolic_trace", "graph", "node", "proxy")),
    *(f"torch.{name}" for name in ("_library.opaque_object", "nn.parameter", "utils._pytree")),
    *(
        f"{__package__}.{name}"
        for name in (
            "builtin",
            "containers",
            "effects",
            "recording",
            "structures",
            "tracer",
            "trial",
        )
    ),
    inspect.__name__,
)
"""Modules whose code runs within a trace and takes traced values for what they are."""

_TRACED = frozenset({TracedValue, _Attribute, _Rank, _IsOfRank})

_PROPERTIES = frozenset({"shape", "ndim", "dtype", "device", "is_cuda", "is_mps", "layout"})
"""Attributes of a tensor that are never methods."""
