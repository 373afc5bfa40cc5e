"""The ways that the code of a model may go in other calls, and in what they differ.

What folds has to fold in all of them. In most of its calls one way does what another does; only the
rest is traced, until something that is to fold lies in it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from reparam.frontends.kinds import AnyConv
from reparam.frontends.torch.decisions import Place, raised_by_the_model
from reparam.frontends.torch.effects import mutated_argument
from reparam.frontends.torch.frames import Call
from reparam.frontends.torch.repeated import Repeated
from reparam.frontends.torch.running import Arguments
from reparam.frontends.torch.skeleton import tensors_of
from reparam.frontends.torch.trace import Identity, Trace, TraceFailure, bound_arguments, trace

_MOST_WAYS = 12
"""Ways through a model that are traced beside the example's at the most."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A way through the code of a model.

    Attributes:
        trace: What it does; calls that do what they do in another way may be left out.
        forced: Where it goes another way than the example.
        traced_whole: Traces it with all calls.

    """

    trace: Trace
    forced: dict[Place, bool] = field(default_factory=dict)
    traced_whole: Callable[[], Trace] | None = None

    def whole(self) -> Way:
        """The same way with nothing left out."""
        if self.traced_whole is None:
            return self
        return Way(self.traced_whole(), self.forced)


def other_ways(
    root: nn.Module, first: Way, example: Arguments | None, *, whole: bool = False
) -> Iterator[Way]:
    """Trace the ways that the code may go in other calls: each one that it may take at all, once.

    Args:
        root: The module.
        first: A whole way.
        example: Arguments to trace with.
        whole: Whether to trace the others whole, too, not without what the first one does as well.

    Raises:
        TraceFailure: One of them cannot be traced.

    """
    traced = first.trace

    def go(**how: Any) -> Way:
        again = partial(trace, root, traced.path, opaque=traced.opaque, **how)
        forced = how.get("forced", {})
        return Way(again(), forced) if whole else Way(again(known=traced), forced, again)

    waiting = [first]
    seen = {(d.place, d.taken) for d in traced.decisions.values()}
    for way in (
        *_at_other_sizes(traced, example, go),
        *_with_other_arguments(root, traced, example, go),
    ):
        seen.update((d.place, d.taken) for d in way.trace.decisions.values())
        waiting.append(way)
        yield way
    tried = 0
    while waiting:
        before = waiting.pop()
        for check, decision in before.trace.decisions.items():
            other = (decision.place, not decision.taken)
            if not decision.is_open or not isinstance(decision.taken, bool) or other in seen:
                continue
            seen.add(other)
            tried += 1
            where = before.trace.stacks[check][-1].path
            if tried > _MOST_WAYS:
                msg = f"it decides on values of its inputs in more than {_MOST_WAYS} places"
                raise TraceFailure(msg, where)
            try:
                way = go(example=example, forced={**before.forced, other[0]: other[1]})
            except TraceFailure as failure:
                if raised_by_the_model(failure.__cause__ or failure):
                    continue
                msg = f"it decides on a value of its inputs ({decision.place}), and the other way"
                raise TraceFailure(f"{msg} {failure}", where) from failure
            seen.update((d.place, d.taken) for d in way.trace.decisions.values())
            waiting.append(way)
            yield way


def _at_other_sizes(
    traced: Trace, example: Arguments | None, go: Callable[..., Way]
) -> Iterator[Way]:
    """Trace with inputs of other sizes where the code makes plain numbers of them."""
    numbers = [d for d in traced.decisions.values() if d.is_open and not isinstance(d.taken, bool)]
    for factor in _FACTORS if numbers and example is not None else ():
        with contextlib.suppress(TraceFailure):  # not every size fits every model
            yield go(example=_resized(example, factor))


def _with_other_arguments(
    root: nn.Module, traced: Trace, example: Arguments | None, go: Callable[..., Way]
) -> Iterator[Way]:
    """Trace a whole model with each of its options in another way: given, or another value."""
    given = bound_arguments(root, example).arguments if not traced.path else {}
    for name, parameter in list(inspect.signature(root.forward).parameters.items()):
        value = given.get(name, parameter)
        if parameter.default is parameter.empty or not isinstance(value, _OPTION):
            continue
        other = parameter if value is None else _another(value)
        with contextlib.suppress(TraceFailure):  # not every option can be made up
            yield go(example=example, varied={name: other})


_OPTION = bool | int | float | str | None
"""What an argument may be that chooses what a forward does."""


def _another(value: bool | float | str) -> bool | float | str:  # noqa: FBT001 (any value is one)
    if isinstance(value, bool):
        return not value
    return f"{value}?" if isinstance(value, str) else value + 1


_FACTORS = (0.5, 2.0, 3.5)


def _resized(example: Any, factor: float) -> Any:
    """Inputs of another size, without numbers."""

    def resize(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() < 3:
            return value
        spatial = [max(1, int(size * factor)) for size in value.shape[2:]]
        return torch.empty(*value.shape[:2], *spatial, dtype=value.dtype, device="meta")

    return tree_map(resize, example)


class Difference:
    """In what a way differs from the whole trace of another.

    Args:
        whole: The trace.
        way: The way; what is left out of it is what the trace has.

    """

    def __init__(self, whole: Trace, way: Trace) -> None:
        """Compare their operations."""
        self._whole, self._way = whole, way

    @cached_property
    def is_deep(self) -> bool:
        """Whether more differs than which operations there are.

        Where values are changed in place, or parts are called with other numbers, what an operation
        does depends on more than on itself.
        """
        own = [n for n in self._way.graph.nodes if not isinstance(n.target, Repeated)]
        beside = (n for n in self._whole.changes if not self._around(n))
        changes = any(mutated_argument(n, self._way.module) is not None for n in own)
        return changes or any(beside) or self._passes_other_numbers()

    def _passes_other_numbers(self) -> bool:
        frame = self._way.frame
        if frame is None or self._way.plain_arguments() != self._whole.plain_arguments():
            return False
        return any(
            one.plain_arguments() != other.plain_arguments()
            for one in frame.all_calls()
            for other in self._whole.calls_of(one.call.path)
            if one.call == other.call
        )

    @cached_property
    def _repeats(self) -> dict[Call, bool]:
        """The calls that are left out of the way, and whether they read there what they do here."""
        return {
            node.target.frame.call: list(map(self._way.identity, node.all_input_nodes))
            == list(map(self._whole.identity, node.target.reads))
            for node in self._way.graph.nodes
            if isinstance(node.target, Repeated)
        }

    @cached_property
    def _new(self) -> list[fx.Node]:
        """The operations that the trace has not, repeated calls among them."""
        return [
            node
            for node in self._way.graph.nodes
            if isinstance(node.target, Repeated) or self._is_other(self._way.identity(node))
        ]

    @cached_property
    def _read(self) -> set[Identity]:
        """What those read."""
        return {self._way.identity(s) for node in self._new for s in node.all_input_nodes}

    @cached_property
    def _tensors(self) -> set[Tensor]:
        """The parameters and buffers that those read, repeated calls not counted."""
        found: set[Tensor] = set()
        for node in self._new:
            if node.op == "get_attr":
                found.add(self._way.held[str(node.target)])
            elif node.op == "call_module":
                found.update(tensors_of(self._way.module(node)))
        return found

    def reads(self, tensors: Collection[Tensor]) -> bool:
        """Whether what the way does otherwise reads some of these parameters and buffers."""
        return not self._tensors.isdisjoint(tensors)

    def leaves_out(self, nodes: Collection[fx.Node]) -> bool:
        """Whether one call that the way repeats holds all of these operations of the trace."""
        return bool(set.intersection(*map(self._around, nodes)))

    def has_rank(self, node: fx.Node) -> bool:
        """Whether a value of the trace has as many axes in the way, for all that can be seen."""
        known, waiting = {node}, [node]
        while waiting:
            one = waiting.pop()
            if one.op == "placeholder" or any(map(self._is_convolution, (one, *one.users))):
                continue
            if not self._is_there(one):
                return False
            for read in set(one.all_input_nodes) - known:
                known.add(read)
                waiting.append(read)
        return True

    def _is_convolution(self, node: fx.Node) -> bool:
        called = node.op == "call_module" and isinstance(self._whole.module(node), AnyConv)
        return called and self._is_there(node)

    def _is_there(self, node: fx.Node) -> bool:
        """Whether an operation of the trace is in the way and reads there what it reads here."""
        calls = self._around(node)
        outside = [read for read in node.all_input_nodes if self._around(read) != calls]
        if calls:
            return not outside or all(self._repeats[call] for call in calls)
        return not self._is_other(self._whole.identity(node))

    def _around(self, node: fx.Node) -> set[Call]:
        """The calls around an operation of the trace that the way repeats."""
        return self._repeats.keys() & set(self._whole.stacks[node])

    def _is_other(self, one: Identity) -> bool:
        return self._way.steps.get(one) != self._whole.steps.get(one)

    def keeps(self, nodes: Collection[fx.Node], result: fx.Node) -> bool:
        """Whether the way has these operations of the trace, and reads elsewhere but one of them.

        Args:
            nodes: The operations.
            result: The one of which others read what it returns.

        """
        known = {self._whole.identity(node): node for node in nodes}
        return not any(
            self._is_other(one) or (node is not result and one in self._read)
            for one, node in known.items()
        )
