"""What of a trace is left when some of its results are not wanted, or some of its inputs are fixed.

Everything is decided on the trace of the whole model; a module that is called several times has
one forward, so what one of its calls needs is left in all of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from reparam.frontends.torch.effects import base_of
from reparam.frontends.torch.frames import Frame, Key
from reparam.frontends.torch.running import is_literal
from reparam.frontends.torch.structures import leaves
from reparam.frontends.torch.told_sizes import Size, is_size_read, sizes_of
from reparam.frontends.torch.trace import Trace

Item = fx.Node | Frame


class Everything:
    """All of a trace, as it is.

    Attributes:
        goes_one_way: Whether code that may go another way is left with the one that it took.

    """

    goes_one_way = False

    def runs(self, _item: Item) -> bool:
        """Whether an operation is left, or something in a call of a module."""
        return True

    def is_stored(self, _path: str, _node: fx.Node) -> bool:
        """Whether a module reads a value from a buffer of its own."""
        return False

    def is_passed(self, _path: str, _node: fx.Node) -> bool:
        """Whether a value is still passed to a module, or returned by it."""
        return True

    def value_of(self, node: fx.Node) -> Any:
        """What is stored."""
        raise NotImplementedError

    def sizes(self, _node: fx.Node) -> tuple[Size, ...] | None:
        """What an operation reads that reads the sizes of a value that is gone."""
        return None

    def store(self, path: str, node: fx.Node, value: Tensor, read: set[str]) -> str:
        """Store a value in a module and return its name there."""
        raise NotImplementedError


class Cut(Everything):
    """What is left of a trace.

    Attributes:
        live: The operations that are left, and the values that they read.
        fixed: Values that are the same in every call, which are stored where they are read.
        known: These and others that are the same in every call of the model, but not of a module.
        rewritten: Paths of the modules whose forward changes.
        buffers: What is stored in each of these modules, by name; filled as they are written.

    """

    goes_one_way = True

    def __init__(
        self, trace: Trace, returned: Any, fixed: dict[fx.Node, Any], whole: Iterable[str]
    ) -> None:
        """Decide it.

        Args:
            trace: Of the whole model, which returns what is still wanted.
            returned: All that the model returned before.
            fixed: The values that are known for good.
            whole: Paths of modules that are not to be rewritten, so that all in them is left.

        """
        assert trace.frame is not None  # noqa: S101 (only parts have none)
        self._trace, self._root = trace, trace.frame
        self._frames = list(trace.frame.all_calls())
        self._nodes = {frame: list(frame.nodes()) for frame in self._frames}
        self._passed: set[tuple[str, fx.Node]] = set()
        self._literals = dict(_literals(trace))
        self._whole = set(whole)
        self.fixed: dict[fx.Node, Any] = {}
        self.live: set[fx.Node] = set()
        self._sizes: dict[fx.Node, tuple[Size, ...]] = {}
        self._all_sizes_read = True
        self._writers = self._find_writers()
        self._states = [(n, base) for base, ns in self._writers.items() for n in ns if _holds(base)]
        self._grow(_nodes_in(returned))
        self._before, self._all_sizes_read = self.live, False
        self.fixed, self.known = dict(fixed), fixed
        self.buffers: dict[str, dict[str, Tensor]] = defaultdict(dict)
        self.rewritten = self._live_modules(_nodes_in(trace.frame.result))

    def runs(self, item: Item) -> bool:  # noqa: D102 (said above)
        if isinstance(item, fx.Node):
            return item in self.live
        return any(n in self.live and n not in self._trace.decisions for n in self._nodes[item])

    def is_stored(self, path: str, node: fx.Node) -> bool:  # noqa: D102
        known = path in self.rewritten and (node in self.fixed or node in self._literals)
        return known and (path, node) not in self._passed

    def sizes(self, node: fx.Node) -> tuple[Size, ...] | None:  # noqa: D102
        found = self._sizes.get(node)
        return found if found and node.all_input_nodes[0] not in self.live else None

    def value_of(self, node: fx.Node) -> Any:  # noqa: D102
        return self.fixed[node] if node in self.fixed else self._literals[node]

    def is_passed(self, path: str, node: fx.Node) -> bool:  # noqa: D102
        return not self.is_stored(path, node) if node in self.fixed else node in self.live

    def store(self, path: str, node: fx.Node, value: Tensor, read: set[str]) -> str:
        """Store a value in a module and return its name there.

        Each operation that reads it has a copy of its own, since what one operation alone reads can
        be folded with it. The calls of a module find the same ones.

        Args:
            path: Path of the module.
            node: The value, or what it is a part of.
            value: Its numbers.
            read: Names that the call of the module reads already; the name is added.

        """
        stored = self.buffers[path]
        known = (n for n, other in stored.items() if n not in read and same(other, value))
        name = next(known, None) or self._free(path, self._start_of(node))
        read.add(name)
        stored[name] = value
        return name

    def _free(self, path: str, stem: str) -> str:
        taken = set(dir(self._trace.root.get_submodule(path))) | self.buffers[path].keys()
        if path == self._root.call.path:  # the traced model has some of its own for these
            taken -= {str(n.target) for n in self.fixed if n.op == "get_attr"}
            taken |= self.buffers[path].keys()
        free, number = stem, 1
        while free in taken:
            number += 1
            free = f"{stem}_{number}"
        return free

    def _start_of(self, node: fx.Node) -> str:
        """The name of the first fixed input that a value follows from."""
        while node.op != "get_attr":
            node = next(n for n in node.all_input_nodes if n in self.known)
        return str(node.target)

    def called(self) -> set[str]:
        """Paths of the modules that are still called, or of which something is read."""
        return self._used_by(self.live)

    def gone(self) -> set[str]:
        """Paths of the modules, parameters and buffers that were used and are not any more."""
        return self._used_by(self._before | self.fixed.keys()) - self.called()

    # ---------------------------------------------------------------- which modules change

    def _live_modules(self, kept: list[fx.Node]) -> set[str]:
        """Find what is left, and the modules that have to change for it.

        What a module is passed may decide what it does, so one that keeps its forward is passed
        everything; that may keep something in another one, and so on.
        """
        while True:
            self.live, self._sizes = set(), {}
            self._grow(kept)
            if self._differ_between_calls():
                continue
            seeing = {f.call.path for f in self._live_frames() if self._sees_a_change(f)}
            seeing.add(self._root.call.path)
            untouched = {f.call.path for f in self._live_frames()} - seeing
            if untouched <= self._whole:
                return seeing - self._whole
            self._whole |= untouched

    def _sees_a_change(self, frame: Frame) -> bool:
        """Whether a call of a module meets anything that is gone or fixed."""
        met: set[fx.Node] = set(_nodes_in((frame.arguments, frame.result)))
        for item in frame.items:
            if isinstance(item, fx.Node):
                met |= {item, *item.all_input_nodes}
            elif self.runs(item):
                met |= set(_nodes_in((item.arguments, item.result)))
            elif any(n in self._before or n in self.fixed for n in self._nodes[item]):
                return True
        return any(n in self.fixed or (n in self._before and n not in self.live) for n in met)

    # ---------------------------------------------------------------- what is left

    def _grow(self, kept: list[fx.Node]) -> None:
        """Mark what is needed for some values, until nothing is missing."""
        self._mark(kept)
        known = -1
        while len(self.live) != known:
            known = len(self.live)
            self._mark_checks()
            self._mark_states()
            live = self._live_frames()
            for frame in live:
                path = frame.call.path
                if path in self._whole and path != self._root.call.path:
                    for node in self._nodes[frame]:
                        self.fixed.pop(node, None)
                    self._mark((*self._nodes[frame], *_nodes_in(frame.arguments)))
            for frames in self._called_again(live).values():
                self._mark_in_all(frames)
            if len(self.live) == known:
                self._mark_sized()

    def _mark_sized(self) -> None:
        """Find the sizes of what is gone in what is left, or else keep it."""
        for read in list(self._sizes):
            value = read.all_input_nodes[0]
            if value in self.live or value in self.fixed:
                continue
            found = sizes_of(self._trace, value, lambda n: n in self.live and n not in self._sizes)
            if found is None:
                self._mark([value])
            else:
                self._sizes[read] = found

    def _mark(self, nodes: Iterable[fx.Node]) -> None:
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in self.live and node not in self.fixed:
                self.live.add(node)
                if is_size_read(node) and not self._all_sizes_read:
                    self._sizes[node] = ()  # what to read is seen when all else is
                    continue
                waiting += node.all_input_nodes
                waiting += self._writers.get(self._base(node), ())

    def _mark_checks(self) -> None:
        """What the code looked at is checked where it might have gone another way."""
        calls = {frame.call for frame in self._live_frames()}
        for check, decision in self._trace.decisions.items():
            known = all(n in self.live or n in self.fixed for n in check.all_input_nodes)
            if self._trace.stacks[check][-1] in calls and (decision.is_open or known):
                self._mark([check])

    def _mark_states(self) -> None:
        """What is kept from call to call is written where it is read, or on the way to a result."""
        read = {n.target for n in self.live if n.op == "get_attr"}
        passing = {f.call for f in self._frames if not self.live.isdisjoint(_nodes_in(f.result))}
        passing.add(self._root.call)
        for writer, base in self._states:
            if base.target in read or self._trace.stacks[writer][-1] in passing:
                self._mark([writer])

    def _live_frames(self) -> list[Frame]:
        return [frame for frame in self._frames if self.runs(frame)]

    @staticmethod
    def _called_again(frames: list[Frame]) -> dict[str, list[Frame]]:
        """Calls of modules that are called more than once."""
        calls: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            calls[frame.call.path].append(frame)
        return {path: found for path, found in calls.items() if len(found) > 1}

    def _mark_in_all(self, frames: list[Frame]) -> None:
        """Let all calls of a module do what one of them does."""
        named = [dict(self._named(frame)) for frame in frames]
        wanted = {name for items in named for name, item in items.items() if self.runs(item)}
        for items in named:
            for name in wanted & items.keys():
                item = items[name]
                if isinstance(item, fx.Node):
                    self._mark([item])
                elif not self.runs(item):
                    self._revive(item)
        for nodes in _in_step(frames):
            if any(node in self.live for node in nodes):
                self._mark(nodes)

    def _revive(self, frame: Frame) -> None:
        """Let a call do what the other calls of its module do."""
        live = {self._trace.keys[n] for n in self.live if n in self._trace.keys}
        self._mark(n for n in self._nodes[frame] if self._trace.keys[n] in live)

    def _named(self, frame: Frame) -> Iterator[tuple[Key | tuple[str, int], Item]]:
        """What happens in a call, under names that other calls of the module have for it, too."""
        counts: Counter[str] = Counter()
        for item in frame.items:
            if isinstance(item, fx.Node):
                yield self._trace.keys[item], item
            else:
                path = item.call.path
                yield (path, counts[path]), item
                counts[path] += 1

    # ---------------------------------------------------------------- fixed, but not in every call

    def _differ_between_calls(self) -> bool:
        """Give up values that are not the same in all calls of a module; whether there were any."""
        given_up = False
        for path, frames in self._called_again(self._live_frames()).items():
            if path in self._whole:
                continue
            for nodes in self._by_name(frames):
                if not self._is_one(nodes) or len(nodes) < len(frames):
                    known = [n for n in nodes if n in self.fixed and n.op != "get_attr"]
                    given_up |= bool(known)
                    for node in known:
                        del self.fixed[node]
            for nodes in _in_step(frames):
                if not self._is_one(nodes):
                    given_up |= self._pass(path, frames, nodes)
        return given_up

    def _by_name(self, frames: list[Frame]) -> Iterable[list[fx.Node]]:
        """The operations that are the same ones in several calls of a module."""
        named: dict[Any, list[fx.Node]] = defaultdict(list)
        for name, item in (pair for frame in frames for pair in self._named(frame)):
            if isinstance(item, fx.Node):
                named[name].append(item)
        return named.values()

    def _is_one(self, nodes: list[fx.Node]) -> bool:
        """Whether values are all fixed and equal, or none is fixed."""
        known = [node in self.fixed for node in nodes]
        if not any(known):
            return True
        first = self.fixed.get(nodes[0])
        return all(known) and all(same(first, self.fixed[node]) for node in nodes)

    def _pass(self, path: str, frames: list[Frame], nodes: list[fx.Node]) -> bool:
        """Have values passed to a module, with which it computes at every call."""
        known = {node for node in nodes if node in self.fixed}
        fresh = {(path, node) for node in known} - self._passed
        self._passed |= fresh
        computed = {
            item
            for frame in frames
            for item in frame.items
            if isinstance(item, fx.Node) and known.intersection(item.all_input_nodes)
        }
        for node in computed & self.fixed.keys():
            del self.fixed[node]
            fresh.add((path, node))
        return bool(fresh)

    # ---------------------------------------------------------------- memory

    def _base(self, node: fx.Node) -> fx.Node:
        return base_of(node, self._trace.module)

    def _find_writers(self) -> dict[fx.Node, list[fx.Node]]:
        """The operations that write in place, by the value whose memory they write to."""
        found: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node, target in self._trace.changes.items():
            found[self._base(target)].append(node)
        return found

    def _used_by(self, nodes: Iterable[fx.Node]) -> set[str]:
        used: set[str] = set()
        for node in nodes:
            if node.op in {"call_module", "get_attr"}:
                used.add(str(node.target))
            if node.op not in {"placeholder", "get_attr"} and node not in self._trace.decisions:
                used.update(call.path for call in self._trace.stacks[node])
        return used


def _literals(trace: Trace) -> Iterator[tuple[fx.Node, Tensor]]:
    """Tensors that the code of a model made itself, as numbers in a loop over a tensor are.

    torch.fx keeps them in the traced copy, under names of its own.
    """
    for node in trace.graph.nodes:
        if is_literal(node):
            yield node, getattr(trace.root, str(node.target))


def _holds(base: fx.Node) -> bool:
    """Whether a value is kept from call to call."""
    return base.op == "get_attr"


def _nodes_in(value: Any) -> list[fx.Node]:
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, fx.Node)]


def _in_step(frames: list[Frame]) -> Iterator[list[fx.Node]]:
    """The values that calls of a module are passed, and return, at the same places."""
    for what in ("arguments", "result"):
        tables = [dict(leaves(getattr(frame, what))) for frame in frames]
        for steps in dict.fromkeys(steps for table in tables for steps in table):
            found = [table.get(steps) for table in tables]
            yield [leaf for leaf in found if isinstance(leaf, fx.Node)]


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal in everything, their numbers too."""
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        kinds = [(t.dtype, t.shape, t.device) for t in (left, right)]
        return kinds[0] == kinds[1] and torch.equal(left, right)
    if type(left) in {list, tuple}:
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)
