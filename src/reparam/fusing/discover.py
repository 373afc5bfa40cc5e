"""Find what folds in a model: trace it, lift it, let the planner choose, and sort out the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from reparam.fusing.objections import Objections, common_call, owners_of
from reparam.graph.ir import Kind, Node
from reparam.graph.lift import Lifted, lift
from reparam.graph.skeleton import hooked_modules, shared_copy
from reparam.graph.trace import Key, TraceFailure, is_builtin, join, trace
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
        host: For a region with a single layer that has numbers: the key of that layer, which is
            replaced where it stands, so that no forward has to change.
        core: The operations that one new layer replaces.
        absorbed: Operations before or behind them that become the identity where they stand.

    """

    lifted: Lifted
    region: Candidate
    block: str
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
        tensors = [t for n in self.core for t in self.lifted.sources.get(n, ())]
        return max((t for t in tensors if t.is_floating_point()), key=lambda t: t.numel())


@dataclass(frozen=True, slots=True)
class Unfolded:
    """Something that was left as it is, and why."""

    where: str
    what: str
    why: str


@dataclass(eq=False)
class Discovery:
    """Everything found in a model."""

    model: nn.Module
    skeleton: nn.Module
    regions: list[Found] = field(default_factory=list)
    unfolded: list[Unfolded] = field(default_factory=list)


def discover(model: nn.Module, example_inputs: Any = None) -> Discovery:
    """Find the regions of an unwrapped model."""
    del example_inputs
    finder = _Finder(model)
    finder.visit("", finder.skeleton)
    return finder.result


class _Finder:
    def __init__(self, model: nn.Module) -> None:
        self.skeleton = shared_copy(model)
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
            traced = trace(module, path)
        except TraceFailure as failure:
            if _has_layers(module):
                self._leave(path or "the model", type(module).__name__, f"its forward cannot be traced ({failure})")
            self._visit_children(path, module)
            return
        self._plan(lift(traced))
        for inner in traced.opaque:
            child = self.skeleton.get_submodule(inner)
            if _has_layers(child):
                self._leave(inner, type(child).__name__, f"its forward cannot be traced ({traced.opaque[inner]})")
            self._visit_children(inner, child)

    def _visit_children(self, path: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            inner = join(path, name)
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                self._visit_children(inner, child)
            elif not is_builtin(child):
                self.visit(inner, child)

    def _plan(self, lifted: Lifted) -> None:
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
                    f"its block is called {calls} times, and folds in {seen[one.keys]} of them only",
                )  # fmt: skip
                continue
            kept.add(one.keys)
            self.result.regions.append(one)
        folded = {key for one in self.result.regions for key in one.keys}
        for node in _leftovers(lifted, folded):
            for reason in _reasons(node, selection.reasons, selection.users):
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
        origin = lifted.origin[layer]
        if origin.op == "call_module" and lifted.sources.get(layer):
            rest = tuple(n for n in nodes if n is not layer and n.kind is not Kind.ALIAS)
            return Found(lifted, region, whole, Found.key_of(layer), (layer,), rest)
    last = region.output
    absorbed: list[Node] = []
    while last.is_diagonal or last.kind is Kind.ALIAS:
        if last.is_diagonal:
            absorbed.append(last)
        last = last.inputs[0]
    core = tuple(n for n in nodes if n.order <= last.order)
    return Found(lifted, region, _block(lifted, list(core)), None, core, tuple(absorbed))


def _block(lifted: Lifted, nodes: list[Node]) -> str:
    """Path of the smallest module that holds all of the operations."""
    stacks = [lifted.trace.stacks[lifted.origin[n]] for n in nodes]
    return common_call(stacks)[-1].path


def _leftovers(lifted: Lifted, folded: set[Key]) -> Iterator[Node]:
    """Operations that a reader would expect to be folded and that were not."""
    for node in lifted.program.nodes:
        if node.key in folded:
            continue
        fused_bn = node.is_diagonal and node.what == "batch norm"
        if fused_bn or node.reason is not None:
            yield node
        elif node.kind is Kind.SUM and any(_is_layer(term) for term in node.inputs):
            yield node


def _is_layer(node: Node) -> bool:
    return node.is_mixing and node.stored > 0


def _reasons(
    node: Node, given_up: dict[Node, list[str]], users: dict[Node, list[Node]]
) -> list[str]:
    if node.reason is not None:
        return [node.reason]
    known = given_up.get(node, [])
    if node.kind is Kind.SUM:
        return known
    behind = [r for user in users.get(node, []) for r in given_up.get(user, [])]
    if known or behind:
        return (known or behind)[:1]
    before = node.inputs[0]
    return [
        f"its input comes from {before.what} at {before.where}, not from a convolution or linear "
        f"layer, and what follows cannot take it"
    ]


def _has_layers(module: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return any(isinstance(m, kinds) for m in module.modules())

