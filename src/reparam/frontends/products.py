"""Einsums of a value and a constant matrix that are layers by another name."""

from __future__ import annotations

from typing import NamedTuple


class Contraction(NamedTuple):
    """An einsum that is a pointwise layer.

    Attributes:
        dims: Number of spatial dimensions of the layer; 0 where it acts on the last axis.
        turned: Whether its matrix has a row for each input channel.

    """

    dims: int
    turned: bool


def contraction(equation: str, value: int) -> Contraction | None:
    """Read ``"bchw,oc->bohw"``: a matrix that acts on one axis of a value, the second or the last.

    That axis is contracted and its place taken by the output channels; all others stay in place.

    Args:
        equation: Of two terms, with its result written out.
        value: Which of the two the value is; the other is the matrix.

    """
    # An ellipsis stands for axes that stay, too.
    written, arrow, result = equation.replace(" ", "").replace("...", "*").partition("->")
    names = written.split(",")
    if not arrow or len(names) != 2:
        return None
    kept, matrix = names[value], names[1 - value]
    at = _contracted(kept, matrix, result)
    if at is None:
        return None
    turned = matrix.index(kept[at]) == 0
    if at == len(kept) - 1:
        return Contraction(0, turned)
    images = at == 1 and "*" not in kept and len(kept) <= 5
    return Contraction(len(kept) - 2, turned) if images else None


def _contracted(x: str, matrix: str, result: str) -> int | None:
    """The axis of ``x`` whose place an axis of the matrix takes; None if it is not that simple."""
    if len(set(x)) != len(x) or len(set(matrix)) != 2 or len(matrix) != 2 or len(result) != len(x):
        return None
    inner, outer = set(matrix) & set(x), set(matrix) - set(x)
    if len(inner) != 1 or len(outer) != 1:
        return None
    at = x.index(inner.pop())
    return at if result == x[:at] + outer.pop() + x[at + 1 :] else None
