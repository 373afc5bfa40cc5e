"""One region of a traced module, and how the module is edited for it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from reparam.frontends.torch.frames import Key
from reparam.frontends.torch.lift import Lifted
from reparam.frontends.torch.skeleton import tensors_of
from reparam.fusing.driver import Site
from reparam.fusing.vetoes import common_call
from reparam.planner import Candidate
from reparam.program import Alias, Node, Sum


@dataclass(frozen=True, eq=False)
class ModuleSite(Site):
    """A region of a traced module or program, and where it is edited for it.

    Attributes:
        block: Path of the smallest module that holds the operations to merge; its forward is
            rewritten, unless ``replaced`` is given.
        reach: Path of the smallest module that holds all of the operations.
        replaced: For a region with a single layer that has numbers, or with norms alone: the key of
            the layer or norm that is replaced where it stands, so that no forward has to change.

    """

    lifted: Lifted
    block: str = ""
    reach: str = ""
    replaced: Key | None = None

    @staticmethod
    def key_of(node: Node) -> Key:
        """The trace's name of a node."""
        assert isinstance(node.key, Key)  # noqa: S101 (this front end's keys)
        return node.key

    def slot_of(self, key: Key) -> int | None:
        """Which of its inputs a sum returns that was moved here; None for other operations."""
        for node in self.absorbed:
            if isinstance(node, Sum) and node.kept is not None and node.key == key:
                read = self.lifted.node_of(node).all_input_nodes
                return read.index(self.lifted.value_of(node.kept))
        return None

    @property
    def like(self) -> Tensor:
        """A weight whose type and device the folded layer gets: the largest.

        Layers of numbers that stand in the code read none; then it is the largest of the region, or
        of the model.
        """
        layers = [n for n in self.core if n.is_convolution] or [self.region.anchor]
        for tensors in (
            (t for n in layers for t in self.lifted.reads(n)),
            (t for n in self.region.nodes for t in self.lifted.reads(n)),
            # Of a large model these are many: not asked for before they are needed.
            chain(tensors_of(self.lifted.trace.root), [torch.empty(0)]),
        ):
            found = [t for t in tensors if t.is_floating_point()]
            if found:
                break
        return max(found, key=Tensor.numel)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing that the layer is made of is to be trained."""
        read = (t for node in self.region.nodes for t in self.lifted.reads(node))
        return not any(t.requires_grad for t in read)

    def entry(self) -> tuple[Node, int]:
        """Where the region reads its source: an operation, and which of the values that it reads.

        Raises:
            LookupError: It does not read it itself.

        """
        source = self.region.source
        # A padded value exists in the planner's view only; the new layer pads its input itself.
        real = source.inputs[0] if source.is_virtual else source
        # A moved operation on the source still stands between it and the core; it is erased later.
        entries = {source, real, *(self.region.nodes - set(self.core))}
        for node in self.core:
            read = self.lifted.node_of(node).all_input_nodes
            for entry in entries & set(node.inputs):
                wanted = self.lifted.value_of(real if entry is source else entry)
                if wanted in read:
                    return node, read.index(wanted)
        msg = "a region does not read its own source"
        raise LookupError(msg)


def name_of(node: Node) -> Hashable:
    """What tells operations of a model apart: a module is one however often it is called."""
    key = ModuleSite.key_of(node)
    return key.target if key.is_module else key


def described(lifted: Lifted, region: Candidate) -> ModuleSite:
    """Decide how the model is edited for a region."""
    mixing = [n for n in region.nodes if n.is_convolution]
    sums = [n for n in region.nodes if isinstance(n, Sum)]
    nodes = sorted(region.nodes, key=lambda n: n.order)
    whole = _block(lifted, nodes)
    if len(mixing) <= 1 and not sums:
        layer = region.anchor
        origin = lifted.node_of(layer)
        if origin.op == "call_module" and lifted.reads(layer):
            rest = tuple(n for n in nodes if n is not layer and not isinstance(n, Alias))
            key = ModuleSite.key_of(layer)
            return ModuleSite(lifted, region, (layer,), rest, whole, whole, key)
    outer = {n for n in nodes if n.is_copy}
    if mixing:
        outer |= _behind(region) | region.leading
    elif not sums:
        outer = set(nodes) - {region.anchor}
    core = tuple(n for n in nodes if n not in outer)
    absorbed = tuple(n for n in nodes if n in outer and not isinstance(n, Alias))
    return ModuleSite(lifted, region, core, absorbed, _block(lifted, list(core)), whole)


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
