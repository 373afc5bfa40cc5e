"""The program as the planner sees it: which values are affine in which, and who reads them.

A front end (torch modules, ONNX files) lifts its program into these nodes and lowers the planner's
regions back. Nothing here knows a framework, and nothing here does arithmetic.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from reparam.algebra import Leaf
from reparam.reasons import Reason

__all__ = ["Kind", "Node", "Program"]


class Kind(enum.Enum):
    """What a node does with its inputs."""

    AFFINE = "affine"
    """Applies the affine operator ``leaf`` to its one input."""
    SUM = "sum"
    """Adds its inputs, each times its coefficient."""
    ALIAS = "alias"
    """Returns its input unchanged (identity, dropout in eval mode)."""
    LAYOUT = "layout"
    """Moves or averages elements of each channel by itself (permute, flatten, mean): a scale and
    shift per channel does the same before and behind it; ``axis`` says where the channels went."""
    CONCAT = "concat"
    """Joins its inputs along the channel axis."""
    OPAQUE = "opaque"
    """Anything else."""


@dataclass(eq=False, slots=True, repr=False)
class Node:
    """One operation and the value it returns.

    Attributes:
        kind: What it does.
        inputs: The values it reads that matter to the planner.
        key: The front end's name of the operation; nodes that were split off share it.
        order: Position in the program.
        what: What it is in the field's terms, for a person.
        where: Where it is, for a person.
        leaf: The operator of an AFFINE node.
        coefficients: One per input of a SUM.
        axis: Position of the channel axis of the value, counted from its end, or None if unknown.
        stored: Numbers the operation stores, such as weights and running statistics.
        computed: Operations that compute its numbers from others at every call.
        reason: Why an operation that looks foldable is OPAQUE.
        shape_only: Whether it reads the shape of its inputs and not their contents.
        own_axis: Channel axis where the operation stands, for one that the planner has moved.
        part: First channel, last channel (exclusive) and number of channels of the operation, for
            one that the planner has split to act on a part of the channels.
        twin_of: The operation in the program, for a copy that the planner has made of it.
        pads: For a virtual value that is its input with non-zero padding: how much, per dimension.
        padding_mode: What that padding is made of.
        virtual: Whether the value exists in the planner's view only, so nothing new can read it.

    """

    kind: Kind
    inputs: tuple[Node, ...]
    key: Hashable
    order: int
    what: str
    where: str
    leaf: Leaf | None = None
    coefficients: tuple[float, ...] = ()
    axis: int | None = None
    stored: int = 0
    computed: int = 0
    reason: Reason | None = None
    shape_only: bool = False
    own_axis: int | None = None
    part: tuple[int, int, int] | None = None
    twin_of: Node | None = None
    virtual: bool = False
    pads: tuple[tuple[int, int], ...] | None = None
    padding_mode: str = "zeros"

    def __repr__(self) -> str:
        """Name the operation, without all that it is computed from."""
        return f"<{self.place}>"

    @property
    def place(self) -> str:
        """What it is and where, for a person."""
        return f"{self.what} at {self.where}"

    @property
    def is_diagonal(self) -> bool:
        """Whether the node scales and shifts each channel by itself."""
        return self.leaf is not None and self.leaf.geometry.is_diagonal

    @property
    def is_mixing(self) -> bool:
        """Whether the node is a convolution, linear layer or pooling: more than a scale."""
        return self.leaf is not None and not self.leaf.geometry.is_diagonal


@dataclass(eq=False)
class Program:
    """The nodes of one traced module in execution order.

    ``pinned`` are nodes whose values are seen from outside (outputs, values that are changed in
    place): a region may end there but not swallow them.
    """

    nodes: list[Node] = field(default_factory=list)
    pinned: set[Node] = field(default_factory=set)

    def users(self) -> dict[Node, list[Node]]:
        """For every node the nodes that read it, once each."""
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                found[source].append(node)
        return found

    def replace(self, nodes: Iterable[Node]) -> Program:
        """Make a program with other nodes and the same pinned values."""
        return Program(list(nodes), set(self.pinned))
