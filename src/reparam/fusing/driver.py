"""The driver: what folding is, whatever the model is written in.

A front end reads a model and gives a :class:`Discovery` of it: which regions there are, how one is
run and folded, how the chosen layers are written, and how old and new model are compared. All that
is the same for modules, exported programs and ONNX files is here.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from reparam.fusing.account import Account
from reparam.fusing.column import Place, column
from reparam.fusing.fold import FoldedLayer, in_parallel
from reparam.fusing.regions import Region, region_record
from reparam.fusing.table import Line, page
from reparam.fusing.undisturbed import undisturbed
from reparam.planner import Candidate, Selection, Veto, select
from reparam.program import Node, Program
from reparam.reasons import Reason, Refusal, Why

Model = TypeVar("Model")


class FoldWarning(UserWarning):
    """A region was left as it is because its folded layer did not agree with it."""


class Lifted(Protocol):
    """A program, and the way back to the model that it was lifted from."""

    @property
    def program(self) -> Program:
        """The planner's program."""
        ...


@dataclass(frozen=True, eq=False)
class Site:
    """A region of a model, and where the model is edited for it.

    Attributes:
        lifted: What it was found in.
        region: The planner's candidate.
        core: The operations that one new layer replaces.
        absorbed: Operations before, behind or between others that become the identity where they
            stand.

    """

    lifted: Any
    region: Candidate
    core: tuple[Node, ...]
    absorbed: tuple[Node, ...]

    @property
    def keys(self) -> frozenset[Hashable]:
        """The names of all operations."""
        return frozenset(node.key for node in self.region.nodes)

    @property
    def moved(self) -> frozenset[Hashable]:
        """The names of operations that the planner moved here, and perhaps elsewhere as well."""
        return frozenset(node.key for node in self.region.nodes if node.is_copy)


Piece = TypeVar("Piece", bound=Site)


class Discovery(ABC, Generic[Model, Piece]):
    """What folds in one model, and what does not; front ends say how.

    Attributes:
        whole: What the model as a whole is called.
        regions: What folds.
        account: What does not, and why.
        notes: What else the reader of a plan should know of the model, a sentence each.
        programs: What was read, in the order in which it runs: one, where the model is one program.

    """

    whole = "the model"

    def __init__(self, name_of: Callable[[Node], Hashable] = lambda node: node.key) -> None:
        """Begin with nothing found; ``name_of`` tells the operations of the model apart."""
        self.regions: list[Piece] = []
        self.account = Account(name_of)
        self.notes: tuple[str, ...] = ()
        self.programs: list[Program] = []

    # ------------------------------------------------------------------ what a front end says

    @abstractmethod
    def described(self, lifted: Any, region: Candidate) -> Piece:
        """Decide how the model is edited for a region."""

    @abstractmethod
    def place(self, found: Piece) -> str:
        """Where a region is, for a person."""

    @abstractmethod
    def bytes_each(self, found: Piece) -> int:
        """Bytes of one number of the layer that takes the place of a region."""

    @abstractmethod
    def fold(self, found: Piece) -> FoldedLayer | Reason:
        """Compute the layer of a region and compare it with the region; or say why that fails."""

    @abstractmethod
    def write(self, folded: Sequence[tuple[Piece, FoldedLayer]]) -> Model:
        """Make the new model; the old one is only read."""

    @abstractmethod
    def checked(self, fused: Model, *, edited: bool) -> Model:
        """Compare the new model with the old one, and hand it out.

        Raises:
            VerificationError: It computes something else.

        """

    def positions(self, found: Piece) -> int | None:
        """Positions of a region's input, batch included, where they are known."""
        known: int | None = found.lifted.positions(
            found.region.source, found.region.geometry.in_channels
        )
        return known

    def records(self) -> Iterable[Region]:
        """The regions, as a plan tells of them."""
        return map(self._record, self.regions)

    # ------------------------------------------------------------------ what is the same for all

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What is left as it is."""
        name = self.account.name_of
        return self.account.refusals({name(n) for one in self.regions for n in one.region.gone})

    def found_in(self, lifted: Lifted, veto: Veto) -> tuple[Selection, list[Piece]]:
        """What may fold in one program, as the planner chooses."""
        selection = select(lifted.program, veto)
        return selection, [self.described(lifted, region) for region in selection.regions]

    def keep(
        self, selection: Selection, found: Iterable[Piece],
        doubt: Callable[[Piece], Reason | None],
    ) -> None:  # fmt: skip
        """Keep the regions of a program that nothing speaks against; account for all else."""
        every = list({one.keys: one for one in found}.values())
        doubts = {one: doubt(one) for one in every}
        kept = [one for one in every if doubts[one] is None]
        together = complete(kept, every)
        self.regions += together
        for one in every:
            if one not in together:
                self.account.leave_region(one.region, doubts[one] or Why.NOT_TOGETHER())
        self.account.explain(selection)
        self.programs.append(selection.program)

    def folded(self) -> list[tuple[Piece, FoldedLayer]]:
        """Fold the regions side by side; warn of those that have to be left."""
        folded: dict[Piece, FoldedLayer] = {}
        for found, layer in in_parallel(
            self.fold, self.regions, size=lambda one: one.region.geometry.weights
        ):
            doubt = layer if isinstance(layer, Reason) else layer.doubt
            if doubt is None and not isinstance(layer, Reason):
                folded[found] = layer
                continue
            warnings.warn(
                f"{self.place(found)} is left as it is: {doubt}", FoldWarning, stacklevel=4
            )
        return [(found, folded[found]) for found in complete(folded, self.regions)]

    def made(self, folded: Sequence[tuple[Piece, FoldedLayer]]) -> Model:
        """Write the new model and compare it with the old one.

        Raises:
            VerificationError: It computes something else.

        """
        return self.checked(self.write(folded), edited=bool(folded))

    def _record(self, found: Piece) -> Region:
        return region_record(
            found.region,
            self.place(found),
            positions=self.positions(found),
            bytes_each=self.bytes_each(found),
        )


def complete(kept: Iterable[Piece], every: Iterable[Piece]) -> list[Piece]:
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


@dataclass(frozen=True, eq=False)
class Plan(Generic[Model]):
    """What folds in a model and what does not; ``print(plan)`` is a page for a person.

    Attributes:
        regions: What folds.
        refusals: What does not, and why.
        notes: What else there is to know of the model, a sentence each.

    """

    regions: tuple[Region, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    _discovery: Discovery[Model, Any] = field(repr=False)

    @undisturbed()
    def apply(self) -> Model:
        """Write the fused model: a new one, sharing no storage with what was planned on.

        A module comes in eval mode; what lies outside of the part chosen by ``where`` keeps its
        mode. A program keeps its inputs, outputs and dynamic shapes; an ONNX model these, its
        metadata and its opsets; and what is not folded keeps its name.

        Each folded layer is compared with the operations it replaces in float64, at the interior
        and the borders. One that does not agree is not used. Modules and programs are then run
        side by side with the new ones, and an ONNX model is checked to be valid.

        Raises:
            VerificationError: The new model computes something else than the old one, or is not a
                valid one; nothing is returned. (This would be a defect of this package.)

        Warns:
            FoldWarning: A folded layer did not agree, or does not fit the type of the model; its
                region was left as it is.

        """
        return self._discovery.made(self._discovery.folded())

    def column(self) -> list[Place]:
        """The model from input to output: what folds, what stays and why, and the layers beside.

        Places that differ in the numbers of their names and in channels alone are one.
        """
        return column(self, self._discovery.programs)

    def __str__(self) -> str:
        """A page of 80 columns: what is saved, what folds and what stays, alike places as one."""
        return self.text()

    def text(self, width: int = 80, *, every: bool = False) -> str:
        """Write the plan for a person.

        Args:
            width: Columns to fill.
            every: Tell each region and each refusal by itself, with its sizes.

        """
        return "\n".join(line.text for line in self.page(width, every=every))

    def page(self, width: int = 80, *, every: bool = False) -> list[Line]:
        """The lines of :meth:`text`, each with what it is; the notes come last."""
        notes = (Line(f"Note: {note}.") for note in self.notes)
        return [*page(self, width, every=every), *notes]
