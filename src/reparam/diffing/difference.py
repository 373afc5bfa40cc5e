"""What a comparison found, as a record and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, Literal

from reparam.diffing.regions import Region

PARTINGS = {
    "attribute": "the same operation with other settings: {left} against {right}",
    "axis": "maps of another axis: {left} against {right}",
    "bias": "the bias of channel {index} is {left:.9g} against {right:.9g}",
    "constant": "a constant at {index} is {left:.9g} against {right:.9g}",
    "geometry": "convolutions of another shape: {why}",
    "outputs": "another number of outputs: {left} against {right}",
    "reading": "{side} as read computes something else than its own runtime, by {off:.1e} of the "
    "largest output",
    "structure": "what is computed next: {left} against {right}",
    "shape": "values of another shape: {left} against {right}",
    "unread": "{why}",
    "weight": "the weight at {index} is {left:.9g} against {right:.9g}",
}
"""How two networks can part, and how that is said."""


@dataclass(frozen=True)
class Difference:
    """Whether two networks are the same function.

    Attributes:
        outcome: ``"equal"``: every part was matched, and every number agrees within what rounding
            of stored weights explains. ``"different"``: an input shows it. ``"not shown"``:
            something could not be read or matched; samples, if any, agreed.
        numbers: Numbers compared.
        worst: Largest difference of two of them, as a share of what rounding explains.
        proven: Share of the operations of the first network that were matched.
        what: How the networks part; a key of ``PARTINGS``.
        where: Where they part: the names of the operations on both sides.
        parts: The same as the bare names that the networks have for them.
        detail: Numbers and names that go with it.
        effect: Largest change of an output, relative to the largest output, by that part alone
            where it could be singled out, on the input that showed it.
        shapes: Shapes of the inputs that this holds for.
        apart: Largest difference of what the two compute, each in its own runtime, for one random
            or given input, as a share of the largest output.
        regions: Both sides of the place where they part: operations, kernels around the number.

    """

    outcome: Literal["equal", "different", "not shown"]
    numbers: int = 0
    worst: float = 0.0
    proven: float = 0.0
    what: str | None = None
    where: tuple[str, str] | None = None
    parts: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    detail: Mapping[str, Any] = field(default_factory=dict)
    effect: float | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    regions: tuple[Region, Region] | None = None
    apart: float | None = None

    def __str__(self) -> str:
        """Say it in a few lines."""
        lines = [_HEADS[self.outcome].format(**self._facts())]
        if self.what is not None:
            lines.append(f"  {self.parting}")
        if self.where is not None:
            first, second = (shorten(names, _WIDTH, placeholder=" ...") for names in self.where)
            lines += [f"  first  {first}", f"  second {second}"]
        if self.effect is not None:
            lines.append(f"  that changes an output by {self.effect:.1e} of the largest")
        return "\n".join(lines)

    @property
    def parting(self) -> str:
        """How they part, in a sentence; empty where they do not."""
        return "" if self.what is None else PARTINGS[self.what].format(**self.detail)

    def _facts(self) -> dict[str, Any]:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        return {"numbers": self.numbers, "worst": self.worst, "proven": self.proven,
                "shapes": shapes}  # fmt: skip


_WIDTH = 200
"""Characters of the names of one side that are printed."""

_HEADS = {
    "equal": "equal: all operations match; {numbers:,} numbers agree, the worst at {worst:.0%} of "
    "what rounding explains (inputs {shapes})",
    "different": "different: the networks part here; {proven:.0%} of what is around it matches",
    "not shown": "not shown to be equal: {proven:.0%} of the operations match",
}
