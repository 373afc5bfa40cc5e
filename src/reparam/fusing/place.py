"""Where a forward has to be rewritten for the regions that were found, and whether it can be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from reparam.frontends.torch.frames import Key
from reparam.frontends.torch.part import part_of
from reparam.frontends.torch.trace import Trace
from reparam.fusing.driver import complete
from reparam.fusing.sites import ModuleSite
from reparam.program import Node
from reparam.reasons import Reason, Why

Parts = dict[tuple[str, frozenset[str]], Trace]
"""Parts of the trace that are rewritten, by the path of the block and its inlined children."""


@dataclass(eq=False)
class Block:
    """What is to be done in the forward of one module.

    Attributes:
        merges: Regions whose core one layer replaces.
        erased: Operations that become the identity, each with the region that absorbs it.
        inlined: Paths of the children whose forward becomes part of this one.

    """

    merges: list[ModuleSite] = field(default_factory=list)
    erased: dict[Key, ModuleSite] = field(default_factory=dict)
    inlined: set[str] = field(default_factory=set)

    @property
    def key(self) -> frozenset[str]:
        """What the block's part of the trace depends on."""
        return frozenset(self.inlined)

    @property
    def trace(self) -> Trace:
        """The trace that the block is a part of."""
        return next(iter(self.regions())).lifted.trace

    def regions(self) -> Iterable[ModuleSite]:
        """All regions with an operation in the block."""
        return dict.fromkeys((*self.merges, *self.erased.values()))


def blocks_of(regions: Iterable[ModuleSite]) -> dict[str, Block]:
    """The forwards that have to be rewritten, by path.

    The edits of a module whose forward becomes part of another's are that other's.
    """
    blocks: dict[str, Block] = defaultdict(Block)
    for found in regions:
        if found.replaced is None:
            blocks[found.block].merges.append(found)
            blocks[found.block].inlined |= _inlined_for(found)
        for node in found.absorbed:
            key = ModuleSite.key_of(node)
            if not key.is_module:
                blocks[key.owner].erased[key] = found
    return _without_nested(dict(blocks))


def _without_nested(blocks: dict[str, Block]) -> dict[str, Block]:
    changed = True
    while changed:
        changed = False
        for path in list(blocks):
            outer = next((b for b in blocks.values() if path in b.inlined), None)
            if outer is not None:
                inner = blocks.pop(path)
                outer.merges += inner.merges
                outer.erased |= inner.erased
                outer.inlined |= inner.inlined
                changed = True
    return blocks


def locate(found: ModuleSite, traced: Trace) -> dict[Node, fx.Node]:
    """Find the core operations of a region, in order, and check how they are connected.

    Raises:
        LookupError: One is missing, or reads other values than in the trace that was planned on.

    """
    by_key: dict[Key, fx.Node] = {key: node for node, key in traced.keys.items()}
    ordered = sorted(found.core, key=lambda n: n.order)
    here = {}
    for node in ordered:
        key = ModuleSite.key_of(node)
        if key not in by_key:
            raise LookupError(missing(key))
        here[node] = by_key[key]
    for node in ordered:
        for value in node.inputs:
            if value in here and here[value] not in here[node].all_input_nodes:
                msg = f"{node!r} reads other values in a trace of the block than in the model's"
                raise LookupError(msg)
    return here


def missing(key: Key) -> str:
    """Say that an operation is not in the trace of its own block."""
    return (
        f"{key.target} of {key.owner or 'the model'} is another operation where the block is "
        f"called with other arguments"
    )


@dataclass(frozen=True, eq=False)
class Placement:
    """The regions that can be placed, and the parts of the trace to place them in.

    Attributes:
        kept: The regions.
        refused: The others, each with the reason.
        parts: The parts.

    """

    kept: list[ModuleSite]
    refused: list[tuple[ModuleSite, Reason]]
    parts: Parts


def place_all(regions: Iterable[ModuleSite]) -> Placement:
    """Take the blocks that are to be rewritten out of the trace, and find the regions in them.

    A block is rewritten for every call of it, so what its calls do differently keeps its regions
    from being folded.
    """
    every = list(regions)
    placement = Placement(list(every), [], {})
    while True:
        blocks = blocks_of(placement.kept)
        misfits = [
            misfit
            for path, block in blocks.items()
            for misfit in _misfits(path, block, placement.parts)
        ]
        if not misfits:
            wanted = {(path, block.key) for path, block in blocks.items()}
            for unused in placement.parts.keys() - wanted:
                del placement.parts[unused]
            return placement
        for found, why in misfits:
            if found in placement.kept:
                placement.kept.remove(found)
                placement.refused.append((found, why))
                together = complete(placement.kept, every)
                dropped = [one for one in placement.kept if one not in together]
                placement.refused.extend((one, Why.NOT_TOGETHER()) for one in dropped)
                placement.kept[:] = together


def _misfits(path: str, block: Block, parts: Parts) -> list[tuple[ModuleSite, Reason]]:
    """Regions that cannot be placed in a block."""
    name = path or "the model"
    try:
        part = parts.get((path, block.key)) or part_of(block.trace, path, block.inlined)
    except LookupError as failure:
        why = Why.NOT_REWRITTEN(block=name, found=str(failure))
        return [(found, why) for found in block.regions()]
    parts[path, block.key] = part
    present = set(part.keys.values())
    misfits = [
        (found, Why.NOT_REWRITTEN(block=name, found=missing(key)))
        for key, found in block.erased.items()
        if key not in present
    ]
    for found in block.merges:
        try:
            locate(found, part)
        except LookupError as error:
            misfits.append((found, Why.NOT_REWRITTEN(block=name, found=str(error))))
    return misfits


def _inlined_for(found: ModuleSite) -> set[str]:
    """Paths of the children whose forward must become part of the block's."""
    return {
        path for node in found.core for path in _between(found.block, ModuleSite.key_of(node).owner)
    }


def _between(outer: str, inner: str) -> list[str]:
    """Paths of the modules from below ``outer`` down to ``inner``, which it may only be handed."""
    paths = []
    path = inner
    while path not in {"", outer}:
        paths.append(path)
        path = path.rpartition(".")[0]
    return paths
