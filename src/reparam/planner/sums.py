r"""Add branches of one value to each other before anything else is added.

:math:`(a + n) + b = (a + b) + n`, where :math:`a` and :math:`b` are branches of one value, which
can become one layer, and :math:`n` is something else. The sum that adds :math:`n` stays, and the
other one moves: it returns what is left of what it read, where it stood.
"""

from __future__ import annotations

from dataclasses import replace

from reparam.planner.wiring import Wiring
from reparam.program import Affine, Alias, Node, Sum

__all__ = ["regroup"]

_NEAREST = 64
"""Earlier values to look for a common one among: bounds the work on very long programs."""


def regroup(wires: Wiring, total: Sum) -> Sum | None:
    """Move a sum, or the one that it reads, to between branches of one value, if it can be.

    Args:
        wires: The program, which changes.
        total: The later of the two sums.

    """
    terms = wires.inputs[total]
    if len(set(terms)) != 2 or len(terms) != 2 or total in wires.left:
        return None
    for k, term in enumerate(terms):
        if total.coefficients[k] == 1:
            made = _between(wires, total, term, terms[1 - k], total.coefficients[1 - k])
            if made is not None:
                return made
    return None


def _between(wires: Wiring, total: Sum, term: Node, last: Node, factor: float) -> Sum | None:
    inner = term
    while wires.is_read_once(inner) and wires.is_alias(inner):
        inner = wires.inputs[inner][0]
    if not isinstance(inner, Sum) or not wires.is_read_once(inner):
        return None
    inside = dict(zip(wires.inputs[inner], inner.coefficients, strict=True))
    roots = _roots(wires, last)
    shared = {term: roots & _roots(wires, term) for term in inside}
    if len(inside) != 2 or all(shared.values()) or not any(shared.values()):
        return None  # all of them are branches of one value, or none
    first, other = sorted(inside, key=lambda term: not shared[term])
    if inside[first] == 0 or factor == 0 or inner.is_copy:
        return None
    if first not in roots and _is_layered(wires, first):
        ratio = factor / inside[first]
        return _move(wires, total, kept=term, reader=inner, terms=(first, last), ratio=ratio)
    if last not in _roots(wires, first) and _is_layered(wires, last) and inside[other] == 1:
        ratio = inside[first] / factor
        return _move(wires, inner, kept=other, reader=total, terms=(last, first), ratio=ratio)
    return None


def _move(
    wires: Wiring, gone: Sum, *, kept: Node, reader: Sum, terms: tuple[Node, Node], ratio: float
) -> Sum:
    """Put a sum between the first of two terms and its reader; it adds the second one to it."""
    first, second = terms
    axis = second.axis if first.axis is None else first.axis
    made = replace(gone, inputs=terms, coefficients=(1.0, ratio), kept=kept, axis=axis)
    wires.inputs[made], wires.inputs[gone] = terms, (kept,)
    wires.inputs[reader] = tuple(made if v is first else v for v in wires.inputs[reader])
    wires.users[made] = [reader]
    wires.users[first] = [made if user is reader else user for user in wires.users[first]]
    wires.users[second] = [made if user is gone else user for user in wires.users[second]]
    wires.nodes.append(made)
    wires.left.add(gone)
    return made


def _roots(wires: Wiring, value: Node) -> set[Node]:
    """A value and the earlier ones of which it alone is an affine function."""
    found = {value}
    while isinstance(value, Affine | Alias) and len(found) < _NEAREST:
        value = wires.inputs[value][0]
        found.add(value)
    if isinstance(value, Sum) and len(found) < _NEAREST:
        ways = [_roots(wires, term) for term in wires.inputs[value]]
        found |= set.intersection(*ways)
    return found


def _is_layered(wires: Wiring, value: Node) -> bool:
    """Whether a term is made by something that can fold."""
    while isinstance(value, Alias):
        value = wires.inputs[value][0]
    return isinstance(value, Affine | Sum)
