"""Calls of modules that do in one trace what they do in another, so that they are not traced again.

Of the ways that the code of a model may go, most of the calls are the same. One that decides
nothing, hides nothing and is called alike stands in the trace of another way as one operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from reparam.frontends.torch.effects import base_of
from reparam.frontends.torch.frames import Call, Frame, Key
from reparam.frontends.torch.structures import leaves

if TYPE_CHECKING:
    from reparam.frontends.torch.trace import Trace

_FEWEST = 2
"""Operations from which on a call takes longer to trace than to compare."""


class Repeated:
    """A call of a module that does what it does in another trace, as one operation.

    Attributes:
        frame: The call there.
        result: What it returns there: the identity of that operation.

    """

    __name__ = "repeated"

    def __init__(self, frame: Frame, trace: Trace) -> None:
        """Remember what is known there of what it reads and returns."""
        self.frame = frame
        self.result: tuple[Call, Key] = trace.identity(frame.result.node)
        self._values = trace.values
        self._arguments = list(leaves(frame.arguments))

    @property
    def reads(self) -> list[fx.Node]:
        """The traced values among its arguments there, each once."""
        return list(dict.fromkeys(n for _, n in self._arguments if isinstance(n, fx.Node)))

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """What it returns for the example; a LookupError where that is not known."""
        return self._values[self.frame.result.node]

    def fits(self, arguments: dict[str, Any], values: Mapping[fx.Node, Any]) -> bool:
        """Whether it is called alike: with the same numbers, and values as far as they are known.

        Args:
            arguments: What it is called with, by the names of forward's parameters.
            values: What is known of the traced values there.

        """
        given = list(leaves(arguments))
        if [steps for steps, _ in given] != [steps for steps, _ in self._arguments]:
            return False
        stands_for: dict[fx.Node, fx.Node] = {}
        for (_, there), (_, here) in zip(self._arguments, given, strict=True):
            if not (isinstance(there, fx.Node) and isinstance(here, fx.Node)):
                if not _same(there, here):
                    return False
            elif stands_for.setdefault(there, here) is not here or not (
                (there.op == "get_attr") == (here.op == "get_attr")
                and (there in self._values) == (here in values)
                and _same(self._values.get(there), values.get(here))
            ):
                return False
        return True


def repeatable_calls(trace: Trace) -> dict[Call, Repeated]:
    """The calls in a trace that do the same whenever they are called alike.

    Such a one goes no other way in any call, returns one value that it computes, reads nothing but
    its arguments and what the model holds, and neither changes nor hands on any other value.
    """
    assert trace.frame is not None  # noqa: S101 (the caller's condition)
    deciding = {node for node, decision in trace.decisions.items() if decision.is_open}
    found = {}
    for frame in trace.frame.all_calls():
        inside = set(frame.nodes())
        result = frame.result.node if isinstance(frame.result, fx.Proxy) else None
        plain = all(isinstance(v, (fx.Proxy, *_PLAIN)) for v in frame.arguments.values())
        if frame is trace.frame or result not in inside or len(inside) < _FEWEST or not plain:
            continue  # a list or dict that is passed may be changed
        read = inside.union(n for _, n in leaves(frame.arguments) if isinstance(n, fx.Node))
        if (
            deciding.isdisjoint(inside)
            and all(read.issuperset(node.all_input_nodes) for node in inside)
            and all(inside.issuperset(node.users) for node in inside if node is not result)
            and all(base_of(trace.changes[n]) in inside for n in inside & trace.changes.keys())
        ):
            found[frame.call] = Repeated(frame, trace)
    return found


def _same(there: object, here: object) -> bool:
    """Whether two plain values are the same, or two tensors without numbers are alike."""
    if isinstance(there, Tensor) and isinstance(here, Tensor):
        alike = there.is_meta and here.is_meta and there.dtype == here.dtype
        return there is here or (alike and there.shape == here.shape)
    return there is here or (type(there) in _PLAIN and type(there) is type(here) and there == here)


_PLAIN = (bool, int, float, str, type(None))
