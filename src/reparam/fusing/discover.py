"""Find what folds in a model: trace it, lift it, let the planner choose, and sort out the rest."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from reparam.fusing.explain import explain
from reparam.fusing.objections import Objections, common_call, owners_of
from reparam.graph.faithful import Outcome, Report, capture_calls, compare, guess_calls
from reparam.graph.ir import Kind, Node
from reparam.graph.kinds import AnyConv
from reparam.graph.lift import Lifted, lift
from reparam.graph.skeleton import hooked_modules, shared_copy
from reparam.graph.trace import Arguments, Key, Trace, TraceFailure, is_builtin, join, trace
from reparam.planner import Candidate, select

__all__ = ["Discovery", "Found", "Unfolded", "discover"]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """One region of a model and how the model is edited for it.

    Attributes:
        lifted: The program it was found in.
        region: The planner's candidate.
        block: Path of the smallest module that holds the operations to merge; its forward is
            rewritten, unless ``host`` is given.
        reach: Path of the smallest module that holds all of the operations.
        host: For a region with a single layer that has numbers: the key of that layer, which is
            replaced where it stands, so that no forward has to change.
        core: The operations that one new layer replaces.
        absorbed: Operations before or behind them that become the identity where they stand.

    """

    lifted: Lifted
    region: Candidate
    block: str
    reach: str
    host: Key | None
    core: tuple[Node, ...]
    absorbed: tuple[Node, ...]

    @property
    def keys(self) -> frozenset[Key]:
        """The static names of all operations."""
        return frozenset(self.key_of(node) for node in self.region.nodes)

    @staticmethod
    def key_of(node: Node) -> Key:
        """The trace's name of a node."""
        assert isinstance(node.key, Key)  # noqa: S101 (this front end's keys)
        return node.key

    @property
    def like(self) -> Tensor:
        """A weight whose type and device the folded layer gets: the largest."""
        tensors = [t for n in self.core for t in self.lifted.reads(n)]
        return max((t for t in tensors if t.is_floating_point()), key=lambda t: t.numel())


@dataclass(frozen=True, slots=True)
class Unfolded:
    """Something that was left as it is, and why."""

    where: str
    what: str
    why: str


@dataclass(eq=False)
class Discovery:
    """Everything found in a model.

    Attributes:
        model: The user's model.
        skeleton: The copy that was read.
        regions: What folds.
        unfolded: What does not.
        calls: By path of a traced module, arguments that it ran with: to run the result with.

    """

    model: nn.Module
    skeleton: nn.Module
    regions: list[Found] = field(default_factory=list)
    unfolded: list[Unfolded] = field(default_factory=list)
    calls: dict[str, Arguments] = field(default_factory=dict)


def discover(model: nn.Module, example_inputs: Any = None) -> Discovery:
    """Find the regions of an unwrapped model."""
    finder = _Finder(model, None if example_inputs is None else as_call(example_inputs))
    finder.visit("", finder.skeleton)
    return finder.result


def as_call(example_inputs: Any) -> Arguments:
    """Read a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    return (example_inputs,), {}


class _Finder:
    def __init__(self, model: nn.Module, example: Arguments | None) -> None:
        self.skeleton = shared_copy(model)
        self._example = example
        self._captured: dict[str, Arguments] | None = None
        self._checked: dict[str, Report] = {}
        self.result = Discovery(model, self.skeleton)
        self._hooked = hooked_modules(model)
        self._owners = owners_of(self.skeleton)
        self._visited: set[nn.Module] = set()

    def visit(self, path: str, module: nn.Module) -> None:
        """Trace a module; where it cannot be traced, go on with its children."""
        if module in self._visited:
            return
        self._visited.add(module)
        try:
            traced = trace(module, path, example=self._known_call(path))
        except TraceFailure as failure:
            if _has_layers(module) or not path:
                self._leave(
                    path or "the model",
                    type(module).__name__,
                    f"its forward cannot be traced ({failure})",
                )
            self._visit_children(path, module)
            return
        report = self._compare(traced)
        if report.outcome is Outcome.DIFFERENT:
            self._leave(path or "the model", type(module).__name__, report.why)
            self._visit_children(path, module)
            return
        ranks = report.ranks if self._example is not None else None
        self._plan(lift(traced, ranks=ranks), report)
        for inner in traced.opaque:
            child = self.skeleton.get_submodule(inner)
            if _has_layers(child):
                self._leave(
                    inner,
                    type(child).__name__,
                    f"its forward cannot be traced ({traced.opaque[inner]})",
                )
            self._visit_children(inner, child)

    def _compare(self, traced: Trace) -> Report:
        """Compare a trace with eager execution on the inputs that are known or can be made up."""
        known = self._checked.get(traced.path)
        if known is None:
            known = compare(traced, self._calls(traced))
            self._checked[traced.path] = known
            if known.call is not None:
                self.result.calls[traced.path] = known.call
        return known

    def _calls(self, traced: Trace) -> list[Arguments]:
        call = self._known_call(traced.path)
        return guess_calls(traced) if call is None else [call]

    def _known_call(self, path: str) -> Arguments | None:
        """The arguments of a module, where an example of the model's is given."""
        if self._example is None or not path:
            return self._example
        if self._captured is None:
            self._captured = capture_calls(self.skeleton, self._example)
        return self._captured.get(path)

    def _is_believable(self, one: Found, report: Report) -> str | None:
        """Where the whole trace could not be compared, compare the block of a region."""
        if report.outcome is Outcome.EQUAL:
            return None
        path = one.reach
        if path != one.lifted.trace.path:
            try:
                block = self.skeleton.get_submodule(path)
                own = self._compare(trace(block, path, example=self._known_call(path)))
            except TraceFailure as failure:
                return f"its forward cannot be traced by itself ({failure})"
            if own.outcome is Outcome.EQUAL:
                return None
            report = own
        return f"its trace could not be compared with eager execution: {report.why}"

    def _visit_children(self, path: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            inner = join(path, name)
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                self._visit_children(inner, child)
            elif not is_builtin(child):
                self.visit(inner, child)

    def _plan(self, lifted: Lifted, report: Report) -> None:
        objections = Objections(lifted, self._hooked, self._owners)
        selection = select(lifted.program, objections)
        seen: dict[frozenset[Key], int] = {}
        found = [_describe(lifted, region) for region in selection.regions]
        for one in found:
            seen[one.keys] = seen.get(one.keys, 0) + 1
        kept: set[frozenset[Key]] = set()
        for one in found:
            if one.keys in kept:
                continue
            calls = objections.calls_of(one.block)
            if seen[one.keys] < calls:
                self._leave(
                    one.block, one.region.output.what,
                    f"its block is called {calls} times and folds in {seen[one.keys]} of them only",
                )  # fmt: skip
                continue
            doubt = self._is_believable(one, report)
            if doubt is not None:
                self._leave(one.reach or "the model", one.region.output.what, doubt)
                continue
            kept.add(one.keys)
            self.result.regions.append(one)
        folded: set[Hashable] = {key for one in self.result.regions for key in one.keys}
        for region, reason in selection.vetoed:
            self._leave(region.output.where, region.output.what, reason)
        for node in lifted.program.nodes:
            for reason in explain(node, folded, selection):
                self._leave(node.where, node.what, reason)

    def _leave(self, where: str, what: str, why: str) -> None:
        entry = Unfolded(where, what, why)
        if entry not in self.result.unfolded:
            self.result.unfolded.append(entry)


def _describe(lifted: Lifted, region: Candidate) -> Found:
    """Decide how the model is edited for a region."""
    mixing = [n for n in region.nodes if n.is_mixing]
    sums = [n for n in region.nodes if n.kind is Kind.SUM]
    nodes = sorted(region.nodes, key=lambda n: n.order)
    whole = _block(lifted, nodes)
    if len(mixing) == 1 and not sums:
        layer = mixing[0]
        origin = lifted.node_of(layer)
        if origin.op == "call_module" and lifted.reads(layer):
            rest = tuple(n for n in nodes if n is not layer and n.kind is not Kind.ALIAS)
            return Found(lifted, region, whole, whole, Found.key_of(layer), (layer,), rest)
    last = region.output
    absorbed: list[Node] = []
    while last.is_diagonal or last.kind is Kind.ALIAS:
        if last.is_diagonal:
            absorbed.append(last)
        last = last.inputs[0]
    absorbed += [n for n in nodes if n.twin_of is not None and n not in absorbed]
    core = tuple(n for n in nodes if n.order <= last.order and n.twin_of is None)
    return Found(lifted, region, _block(lifted, list(core)), whole, None, core, tuple(absorbed))


def _block(lifted: Lifted, nodes: list[Node]) -> str:
    """Path of the smallest module that holds all of the operations."""
    stacks = [lifted.trace.stacks[lifted.node_of(n)] for n in nodes]
    return common_call(stacks)[-1].path


def _has_layers(module: nn.Module) -> bool:
    kinds = (AnyConv, nn.Linear)
    return any(isinstance(m, kinds) for m in module.modules())
