"""Trace a model once with torch.fx, naming every operation so that it can be found again.

A module that cannot be traced stays one opaque call in its parent, so that one clever module does
not hide the rest of a model.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.frontends.torch.decisions import Decision, Level, Place
from reparam.frontends.torch.effects import base_of, mutated_argument
from reparam.frontends.torch.frames import Call, Frame, Key, first_line
from reparam.frontends.torch.recording import Recorder
from reparam.frontends.torch.repeated import PLAIN, Repeated
from reparam.frontends.torch.running import Arguments, Held
from reparam.frontends.torch.skeleton import shared_copy
from reparam.frontends.torch.structures import leaves, tensors_in
from reparam.frontends.torch.tracer import Tracer

Identity = tuple[Call, Key]
"""An operation of a trace: the call that it is made in, and its name there."""


@dataclass(eq=False)
class Trace:
    """A traced module.

    Attributes:
        root: The module that was traced (a copy that shares tensors with the user's).
        path: Path of ``root`` in the whole model.
        graph: What it executes; inputs are the tensors in its arguments, in order.
        keys: The name of every node.
        stacks: The module calls around every node, outermost first, beginning with ``root``.
        opaque: Paths of modules that could not be traced, each with the reason.
        frame: The call of ``root``, with those inside.
        values: What values are for the example, as far as is known; tensors without numbers.
        decisions: Where the code looked at values, by the node that checks it.
        recorder: The operators that the trace runs, where it was made with an example.
        literals: Of a part: tensors that it reads, by name, which no module holds: they stand in
            lists, in classes, or are global.

    """

    root: nn.Module
    path: str
    graph: fx.Graph
    keys: dict[fx.Node, Key]
    stacks: dict[fx.Node, tuple[Call, ...]]
    opaque: dict[str, str] = field(default_factory=dict)
    frame: Frame | None = None
    values: dict[fx.Node, Any] = field(default_factory=dict)
    decisions: dict[fx.Node, Decision] = field(default_factory=dict)
    recorder: Recorder | None = None
    literals: dict[str, Tensor] = field(default_factory=dict)
    _frames: dict[str, list[Frame]] = field(default_factory=dict, repr=False)

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a module call calls."""
        called: nn.Module = self.held[str(node.target)]
        return called

    @cached_property
    def held(self) -> Held:
        """What the root holds, by path."""
        return Held(self.root)

    @cached_property
    def changes(self) -> dict[fx.Node, fx.Node]:
        """The operations that change a value in place, and these values."""
        found = ((node, mutated_argument(node, self.module)) for node in self.graph.nodes)
        return {node: target for node, target in found if target is not None}

    def plain_arguments(self) -> dict[Any, Any]:
        """The numbers and words that the root is called with."""
        return {} if self.frame is None else self.frame.plain_arguments()

    def deciding(self) -> dict[str, Place]:
        """The modules whose own code may go another way in another call, and where it decides."""
        return {
            self.stacks[check][-1].path: decision.place
            for check, decision in self.decisions.items()
            if decision.is_open
        }

    def does(self) -> Hashable:
        """What it does, whatever the sizes are that its code has asked for on the way."""
        calls = self.frame.all_calls() if self.frame is not None else ()
        passed = tuple((f.call, tuple(f.plain_arguments().items())) for f in calls)
        return tuple(self.steps.items()), passed

    @cached_property
    def steps(self) -> dict[Identity, Hashable]:
        """Its operations in order: where each is called, and what it reads."""
        found: dict[Identity, Hashable] = {}
        for node in self.graph.nodes:
            if not self._only_asks(node):
                read = [
                    (path, self.identity(leaf) if isinstance(leaf, fx.Node) else repr(leaf))
                    for path, leaf in leaves((node.args, node.kwargs))
                ]
                found[self.identity(node)] = self.stacks[node], tuple(read)
        return found

    def identity(self, node: fx.Node) -> Identity:
        """What an operation is in every trace that has it."""
        if isinstance(node.target, Repeated):
            return node.target.result
        return self.stacks[node][-1], self.keys[node]

    def _only_asks(self, node: fx.Node) -> bool:
        """Whether an operation is there for the code to look at, and looks at sizes alone."""
        if node in self.decisions:
            return self.decisions[node].level <= Level.SIZE
        compares = node.target in _COMPARISONS and bool(node.users)
        return compares and all(map(self._only_asks, node.users))

    @cached_property
    def repeatable(self) -> dict[Call, Repeated]:
        """The calls that do the same whenever they are called alike, whatever goes on around.

        Such a one goes no other way in any call, returns one value that it computes, reads nothing
        but its arguments and what the model holds, and neither changes nor hands on another value.
        """
        deciding = {node for node, decision in self.decisions.items() if decision.is_open}
        found = {}
        for frame in self.frame.all_calls() if self.frame is not None else ():
            inside = set(frame.nodes())
            result = frame.result.node if isinstance(frame.result, fx.Proxy) else None
            plain = all(isinstance(v, (fx.Proxy, *PLAIN)) for v in frame.arguments.values())
            if frame is self.frame or result not in inside or len(inside) < _FEWEST or not plain:
                continue  # a list or dict that is passed may be changed
            read = inside.union(n for _, n in leaves(frame.arguments) if isinstance(n, fx.Node))
            if (
                deciding.isdisjoint(inside)
                and all(read.issuperset(node.all_input_nodes) for node in inside)
                and all(inside.issuperset(node.users) for node in inside if node is not result)
                and all(base_of(self.changes[n]) in inside for n in inside & self.changes.keys())
            ):
                found[frame.call] = Repeated(frame, self.identity(result), self.values)
        return found

    def calls_of(self, path: str) -> list[Frame]:
        """All calls of a module."""
        if not self._frames and self.frame is not None:
            for frame in self.frame.all_calls():
                self._frames.setdefault(frame.call.path, []).append(frame)
        return self._frames.get(path, [])


_FEWEST = 2
"""Operations from which on a call takes longer to trace than to compare."""

_COMPARISONS = frozenset({
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
})  # fmt: skip


class TraceFailure(Exception):  # noqa: N818 (internal; never reaches a user)
    """The root itself cannot be traced.

    Attributes:
        where: Path of the module that stands in the way, where that is not the root.

    """

    def __init__(self, why: str, where: str | None = None) -> None:
        """Say why."""
        super().__init__(why)
        self.where = where


def trace(
    root: nn.Module,
    path: str = "",
    *,
    example: Arguments | None = None,
    opaque: dict[str, str] | None = None,
    forced: dict[Place, bool] | None = None,
    varied: dict[str, Any] | None = None,
    known: Trace | None = None,
) -> Trace:
    """Trace a module, with the calls of all modules inside that can be traced.

    Args:
        root: What to trace.
        path: Its path in the whole model.
        example: Arguments to trace with. Without them, the arguments that forward needs are inputs
            of which nothing is known, and the others have their defaults.
        opaque: Paths of modules that are not to be traced, with the reasons.
        forced: Ways to go where the code decides on a value.
        varied: Arguments to trace with in the place of the example's.
        known: Another trace of ``root``: what a call does as it does there is not traced again, but
            stands as one operation, :class:`~reparam.frontends.torch.repeated.Repeated`.

    Raises:
        TraceFailure: The forward of ``root`` itself cannot be traced; the message says why.

    """
    # A copy, since forwards may keep what they compute, symbolic values then, in attributes.
    twin = shared_copy(root)
    try:
        bound = bound_arguments(twin, example)
        bound.arguments.update(varied or {})
        positional = len(example[0]) if example else _needed(bound.signature)
        tracer = Tracer(
            path, root, bound, opaque or {}, forced or {}, _device(root, example), positional
        )
        tracer.known = {} if known is None else known.repeatable
        frame = tracer.record(twin)
    except Exception as error:
        # Any exception of the user's forward on symbolic values only says: not traceable.
        raise TraceFailure(first_line(error)) from error
    made = Trace(
        twin, path, tracer.graph, tracer.names, tracer.stacks, tracer.opaque, frame, tracer.values,
        tracer.decisions, None if example is None else tracer.recorder,
    )  # fmt: skip
    tracer.forget()
    return made


def straight_trace(root: nn.Module, path: str = "", opaque: Iterable[str] = ()) -> Trace:
    """Trace a module in what it does in every call; what decides on its inputs stays opaque.

    Args:
        root: What to trace.
        path: Its path in the whole model.
        opaque: Paths of modules that are not to be traced.

    Raises:
        TraceFailure: The forward of ``root`` itself cannot be traced, or decides on its inputs.

    """
    left = dict.fromkeys(opaque, "")
    while True:
        traced = trace(root, path, opaque=left)
        deciding = {
            where: f"it decides on a value of its inputs ({place})"
            for where, place in traced.deciding().items()
        }
        if path in deciding:
            raise TraceFailure(deciding[path])
        if not deciding:
            return traced
        left |= deciding


def bound_arguments(module: nn.Module, example: Arguments | None) -> inspect.BoundArguments:
    """The arguments to trace a forward with; what is not known is its :class:`Parameter`."""
    signature = inspect.signature(module.forward)
    if example is not None:
        bound = signature.bind(*example[0], **example[1])
        bound.apply_defaults()
        return bound
    plain = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {n: p for n, p in signature.parameters.items() if p.kind not in plain}
    needed = [n for n, p in named.items() if p.default is p.empty] or list(named)[:1]
    values: dict[str, Any] = {n: p if n in needed else p.default for n, p in named.items()}
    if not named:  # forward(*args): most likely one tensor
        values = {n: (p,) for n, p in signature.parameters.items() if p.kind is p.VAR_POSITIONAL}
    return inspect.BoundArguments(signature, values)


def _needed(signature: inspect.Signature) -> int:
    """How many arguments a forward needs; without any, its first."""
    return max(1, sum(p.default is p.empty for p in signature.parameters.values()))


def _device(root: nn.Module, example: Arguments | None) -> torch.device:
    tensors = [*root.parameters(), *tensors_in(example or ())]
    return next((t.device for t in tensors if isinstance(t, Tensor)), torch.device("cpu"))
