"""The program as the planner sees it: which values are affine in which, and who reads them.

A front end (torch modules, ONNX files) lifts its program into these nodes and lowers the planner's
regions back. Nodes and programs never change; what rewrites one makes another. Nothing here knows a
framework, and nothing here does arithmetic.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from reparam.algebra import Leaf
from reparam.reasons import Reason


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Operation:
    """One operation and the value it returns: what all nodes have.

    Attributes:
        inputs: The values it reads that matter to the planner.
        key: The front end's name of the operation; nodes that were split off share it.
        order: Position in the program.
        what: What it is in the field's terms, for a person.
        where: Where it is, for a person.
        axis: Position of the channel axis of the value, counted from its end, or None if unknown.
        channels: Size of that axis, or None if unknown.
        origin: What the node stands for, as the front end knows it.

    """

    inputs: tuple[Node, ...]
    key: Hashable
    order: int
    what: str
    where: str
    axis: int | None = None
    channels: int | None = None
    origin: Any = None

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
        return isinstance(self, Affine) and self.leaf.geometry.is_diagonal

    @property
    def is_convolution(self) -> bool:
        """Whether the node is a convolution, linear layer or pooling: more than a scale."""
        return isinstance(self, Affine) and not self.leaf.geometry.is_diagonal

    @property
    def is_layer(self) -> bool:
        """Whether the node is a convolution or linear layer: mixing, with numbers of its own."""
        return isinstance(self, Affine) and self.is_convolution and self.stored > 0

    @property
    def is_scale(self) -> bool:
        """Whether the node is a norm or scale with numbers of its own, moved here or not."""
        numbers = isinstance(self, Affine) and (self.stored > 0 or self.is_copy)
        return numbers and self.is_diagonal

    @property
    def is_copy(self) -> bool:
        """Whether the planner made the node: an operation of the program, moved."""
        if isinstance(self, Sum):
            return self.kept is not None
        return isinstance(self, (Affine, Alias)) and self.moved is not None

    @property
    def is_virtual(self) -> bool:
        """Whether the value exists in the planner's view only, so nothing new can read it."""
        return isinstance(self, HostedInput) or (isinstance(self, Padded) and self.of_layer)


@dataclass(frozen=True, slots=True)
class Moved:
    """Where an operation stands that the planner has moved.

    Attributes:
        axis: Channel axis there.
        width: Number of channels there.
        channels: For each channel of the copy the one of the operation that acts on it there, or
            None for a channel that stays as it is.
        shift: How often the copy adds what the operation adds: a sum takes it once.
        inverse: Whether the copy divides by the factors of the operation instead.
        past: The addition of constants that a scale was moved past; it adds these divided by the
            factors where the copy folds.

    """

    axis: int | None
    width: int
    channels: tuple[int | None, ...]
    shift: float = 1.0
    inverse: bool = False
    past: Affine | None = None


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Affine(Operation):
    """Applies the affine operator ``leaf`` to its one input.

    Attributes:
        leaf: The operator.
        stored: Numbers the operation stores, such as weights and running statistics.
        computed: Operations that compute its numbers from others at every call.
        reads: The front end's names of those numbers.
        is_norm: Whether it is a batch norm, which can stand there with other numbers.
        moved: For a copy of an operation elsewhere in the program: where that stands.

    """

    leaf: Leaf
    stored: int = 0
    computed: int = 0
    reads: frozenset[Any] | tuple[Any, ...] = ()
    is_norm: bool = False
    moved: Moved | None = None


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Sum(Operation):
    """Adds its inputs, each times its coefficient.

    Attributes:
        coefficients: One for each input.
        kept: For a sum that was moved here: what it returns where it stood, one of what it read.

    """

    coefficients: tuple[float, ...]
    kept: Node | None = None


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Alias(Operation):
    """Returns its input unchanged (identity, dropout in eval mode, what was moved elsewhere).

    Attributes:
        moved: For what was moved here and then further on: where the operation stands.

    """

    moved: Moved | None = None


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Layout(Operation):
    r"""Moves or averages elements of each channel by itself (permute, flatten, mean, upsampling).

    Each element that it returns is a weighted mean of elements of the same channel, with weights
    :math:`w_i` that are the same whatever the elements and sum to one, so a scale and shift per
    channel does the same before and behind it,
    :math:`\sum_i w_i (s x_i + b) = s \sum_i w_i x_i + b`; ``axis`` says where the channels went.

    Attributes:
        monotone: It takes the largest element instead. That commutes with what does not turn the
            order around, :math:`\max_i (s x_i + b) = s \max_i x_i + b` for :math:`s \ge 0`.
        reason: Why it is no operator that folds as such, where it looks like one.

    """

    monotone: bool = False
    reason: Reason | None = None


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Routed(Operation):
    """Moves elements between channels, whole channels or parts of them (chunk, pixel shuffle).

    A scale and shift per channel becomes another before it, or behind it, where each channel there
    has to do with one of the operation's alone.

    Attributes:
        origins: For each channel that it returns the channels of its input that it takes elements
            of.

    """

    origins: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Concat(Operation):
    """Joins its inputs along the channel axis."""


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Padded(Operation):
    """Its input with padding that is not zeros.

    Attributes:
        pads: How much, per dimension.
        mode: What the padding is made of.
        of_layer: Whether a layer pads by itself, so that nothing else can read the value.

    """

    pads: tuple[tuple[int, int], ...]
    mode: str
    of_layer: bool


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class HostedInput(Operation):
    """What a layer makes of its input that is no ordinary convolution; its weight acts on that.

    Attributes:
        spread: For each of its channels the one of the input whose elements it holds, and zeros
            beside them, so that it is multiplied by what that is; None where that is not known.
        window: For a transposed convolution what others that read the same input are to share, to
            be one with it; and the places of its taps, per dimension.

    """

    spread: tuple[int, ...] | None = None
    window: tuple[Hashable, tuple[tuple[int, ...], ...]] | None = None


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class ShapeOf(Operation):
    """Reads the shape of its inputs and not their contents."""


@dataclass(frozen=True, eq=False, slots=True, repr=False, kw_only=True)
class Opaque(Operation):
    """Anything else; ``reason`` says why where it looks foldable."""

    reason: Reason | None = None


Node = Affine | Sum | Alias | Layout | Routed | Concat | Padded | HostedInput | ShapeOf | Opaque


@dataclass(frozen=True, eq=False)
class Program:
    """The nodes of one traced module in execution order.

    ``pinned`` are nodes whose values are seen from outside (outputs, values that are changed in
    place): a region may end there but not swallow them.
    """

    nodes: tuple[Node, ...] = ()
    pinned: frozenset[Node] = frozenset()

    def users(self) -> dict[Node, list[Node]]:
        """For every node the nodes that read it, once each."""
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                found[source].append(node)
        return found


def largest(nodes: Iterable[Node]) -> Affine:
    """The convolution or linear layer with the most numbers, the first of equal ones."""
    layers = (node for node in nodes if isinstance(node, Affine) and node.is_convolution)
    return max(layers, key=lambda node: (node.stored, -node.order))
