"""One region of a model, and how the model is edited for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from reparam.frontends.torch.lift import Lifted
from reparam.frontends.torch.trace import Key
from reparam.fusing.objections import common_call
from reparam.planner import Candidate
from reparam.program import Alias, Node, Sum

__all__ = ["Found", "complete", "describe"]


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

    @property
    def moved(self) -> frozenset[Key]:
        """The names of operations that the planner moved here, and perhaps elsewhere as well."""
        return frozenset(self.key_of(node) for node in self.region.nodes if node.is_copy)

    @staticmethod
    def key_of(node: Node) -> Key:
        """The trace's name of a node."""
        assert isinstance(node.key, Key)  # noqa: S101 (this front end's keys)
        return node.key

    @property
    def like(self) -> Tensor:
        """A weight whose type and device the folded layer gets: the largest."""
        tensors = [t for n in self.core if n.is_mixing for t in self.lifted.reads(n)]
        return max((t for t in tensors if t.is_floating_point()), key=lambda t: t.numel())


def describe(lifted: Lifted, region: Candidate) -> Found:
    """Decide how the model is edited for a region."""
    mixing = [n for n in region.nodes if n.is_mixing]
    sums = [n for n in region.nodes if isinstance(n, Sum)]
    nodes = sorted(region.nodes, key=lambda n: n.order)
    whole = _block(lifted, nodes)
    if len(mixing) == 1 and not sums:
        layer = mixing[0]
        origin = lifted.node_of(layer)
        if origin.op == "call_module" and lifted.reads(layer):
            rest = tuple(n for n in nodes if n is not layer and not isinstance(n, Alias))
            return Found(lifted, region, whole, whole, Found.key_of(layer), (layer,), rest)
    outer = {n for n in nodes if n.is_copy} | _behind(region) | region.leading
    core = tuple(n for n in nodes if n not in outer)
    absorbed = tuple(n for n in nodes if n in outer and not isinstance(n, Alias))
    return Found(lifted, region, _block(lifted, list(core)), whole, None, core, absorbed)


def complete(kept: Iterable[Found], every: Iterable[Found]) -> list[Found]:
    """Those regions of which all moved operations fold wherever they were moved to.

    An operation that several regions take over becomes the identity where it stands, so these
    regions fold together or not at all.
    """
    whole = Counter(key for found in every for key in found.moved)
    left = list(kept)
    while True:
        now = Counter(key for found in left for key in found.moved)
        broken = {key for key, times in now.items() if times < whole[key]}
        if not broken:
            return left
        left = [found for found in left if not found.moved & broken]


def _behind(region: Candidate) -> set[Node]:
    """Per-channel operations that follow everything else: they stay, as the identity."""
    passed: set[Node] = set()
    last = region.output
    while last.is_diagonal or isinstance(last, Alias):
        passed.add(last)
        last = last.inputs[0]
    return passed


def _block(lifted: Lifted, nodes: list[Node]) -> str:
    """Path of the smallest module that holds all of the operations."""
    stacks = [lifted.trace.stacks[lifted.node_of(n)] for n in nodes]
    return common_call(stacks)[-1].path
