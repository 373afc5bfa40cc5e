r"""Add branches of one value to each other before anything else is added.

:math:`(a + n) + b = (a + b) + n`, where :math:`a` and :math:`b` are branches of one value, which
can become one layer, and :math:`n` is something else. The sum that adds :math:`n` stays, and the
other one moves: it returns what is left of what it read, where it stood.
"""

from __future__ import annotations

from dataclasses import replace

from reparam.planner.wiring import Wiring
from reparam.program import Affine, Alias, Node, Program, ShapeOf, Sum

_NEAREST = 64
"""Earlier values to look for a common one among: bounds the work on very long programs."""


def rejoined(program: Program, users: dict[Node, list[Node]]) -> dict[Node, frozenset[Node]]:
    """Values that sums and scales alone read, of which one sum adds up all, as in a + w (b - a).

    Args:
        program: The program.
        users: What reads each of its values.

    Returns:
        For each what reads it, up to and including that sum.

    """
    place = {node: k for k, node in enumerate(program.nodes)}
    readers = {
        node: [user for user in users[node] if not isinstance(user, ShapeOf)]
        for node in program.nodes
    }
    found = {}
    for value in program.nodes:
        ways: set[Node] = set()
        ahead = set(readers[value])
        while len(ahead) > 1 and all(map(_passes, ahead)) and len(ways) < _NEAREST:
            nearest = min(ahead, key=place.__getitem__)
            if nearest in program.pinned:
                break
            ways.add(nearest)
            ahead = (ahead - {nearest}) | set(readers[nearest])
        if ways and len(ahead) == 1 and isinstance(last := ahead.pop(), Sum):
            found[value] = frozenset({*ways, last})
    return found


def _passes(node: Node) -> bool:
    return isinstance(node, Sum | Alias) or node.is_diagonal


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
