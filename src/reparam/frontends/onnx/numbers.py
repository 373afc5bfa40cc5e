"""Constants of an ONNX graph where they are read as words of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from reparam.frontends.onnx.constants import Constants
from reparam.frontends.torch import constants as torch_constants
from reparam.frontends.weights import all_finite
from reparam.reasons import Reason, Why


@dataclass(frozen=True, slots=True)
class Number:
    """A constant as a layer of torch has it.

    Attributes:
        name: The constant of the file that it is, or is made of.
        shape: Its shape.
        load: Reads its numbers.

    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Tensor] = field(repr=False)


class Numbers(torch_constants.Constants):
    """What is constant among the words of a graph; large tensors are read when they are needed."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants

    def __contains__(self, value: object) -> bool:
        """Whether a value is constant; literals are."""
        return not isinstance(value, fx.Node)

    def is_tensor(self, value: object) -> bool:
        """Whether a value is a constant tensor, not a literal."""
        return isinstance(value, Number)

    def shape(self, node: Any) -> tuple[int, ...]:
        """Shape of a constant."""
        shape: tuple[int, ...] = node.shape
        return shape

    def value(self, node: Any) -> Tensor:
        """Numbers of a constant."""
        numbers: Tensor = node.load()
        return numbers

    def operations(self, node: Any) -> int:
        """Number of operations that compute a constant at every run."""
        return self._constants.operations(node.name)

    def reads(self, values: Sequence[Any]) -> Collection[Any]:
        """The constants of the file, by name."""
        return [value.name for value in values]

    def stored(self, values: Sequence[Any]) -> int:
        """How many numbers the file has; single ones are a part of the operation, as in torch."""
        sizes = [math.prod(value.shape) for value in values]
        return sum(size for size in sizes if size > 1)

    def doubt(self, values: Sequence[Any], what: str) -> Reason | None:
        """Why constants cannot be the numbers of a layer, if so."""
        names = self.reads(values)
        if not all(map(self._constants.is_floating, names)):
            return Why.NOT_FLOATING(what=what)
        finite = (all_finite({self._constants.numbers(name)}) for name in names)
        return None if all(finite) else Why.NOT_FINITE(what=what)
