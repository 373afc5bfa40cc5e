"""What a plan says of one region: plain records for a person."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from reparam.planner import Candidate
from reparam.program import Affine, HostedInput, Node, Padded, Sum


@dataclass(frozen=True, slots=True)
class Region:
    """Operations that one layer replaces.

    Attributes:
        where: Path of the module that holds them.
        what: What they are, in the field's terms.
        into: The layer that replaces them.
        layers_before: Operations executed now; one afterwards.
        macs_before: Multiply-adds per position of the region's input, now.
        macs_after: The same after folding; never more.
        stored_before: Numbers stored now: weights, biases, running statistics.
        stored_after: The same after folding; never more.
        parts: Places of the operations.
        probed: Whether the operator was read off the module's responses to impulses instead of its
            code: evidence, not proof.
        positions: Positions of the region's input in the example, batch included, where known: the
            multiply-adds are so many times those of one.
        bytes_each: Bytes of one stored number.

    """

    where: str
    what: str
    into: str
    layers_before: int
    macs_before: float
    macs_after: float
    stored_before: int
    stored_after: int
    parts: tuple[str, ...] = ()
    probed: bool = False
    positions: int | None = None
    bytes_each: int = 4


def region_record(
    region: Candidate, where: str, *, positions: int | None, bytes_each: int
) -> Region:
    """Describe a region of a program of any kind for a person."""
    before, after = region.cost, region.cost_after
    return Region(
        where=where,
        what=describe(region.nodes),
        into=_into(region),
        layers_before=before.layers,
        macs_before=float(before.macs),
        macs_after=float(after.macs),
        stored_before=before.stored,
        stored_after=after.stored,
        parts=tuple(dict.fromkeys(n.where for n in sorted(region.gone, key=lambda n: n.order))),
        positions=positions,
        bytes_each=bytes_each,
    )


def _into(region: Candidate) -> str:
    """Name the layer that takes the place of a region."""
    source = region.source
    if isinstance(source, Padded):
        return f"{region.geometry}, {source.mode} padding {source.pads[0][0]}"
    if region.norm is not None:
        return region.norm.what
    if isinstance(source, HostedInput):
        return next(n.what for n in region.nodes if source in n.inputs)
    return str(region.geometry)


def describe(nodes: frozenset[Node]) -> str:
    """Name the operations of a region, equal ones counted, layers first."""
    ordered = sorted(nodes, key=lambda n: (not n.is_convolution, n.order))
    names = Counter(_short(n) for n in ordered if isinstance(n, Affine | Sum))
    return " + ".join(
        name if times == 1 else f"{times} {name}{'s' if name in _COUNTED else ''}"
        for name, times in names.items()
    )


_COUNTED = {"batch norm", "add", "scale", "shift"}
"""Operations whose name takes an s; a layer's, such as 3x3 conv, reads well without."""


def _short(node: Node) -> str:
    if isinstance(node, Affine) and node.is_layer:
        if isinstance(node.inputs[0], HostedInput):
            return node.what
        size = "x".join(str(len(taps)) for taps in node.leaf.geometry.offsets)
        return f"{size} conv" if size else "linear"
    return node.what
