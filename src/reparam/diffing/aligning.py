"""Which values of two networks correspond, from the inputs upwards; and where that ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reparam.diffing.kinds import POINTWISE
from reparam.diffing.matching import Match, Matcher
from reparam.diffing.running import reads
from reparam.diffing.values import Atom, Form, Operation


@dataclass(frozen=True, eq=False)
class Alignment:
    """What was matched.

    Attributes:
        share: Share of the operations of the first network that have an equal one.
        first: The values of the first network that have none, though all they read has one.
        second: The same of the second.

    """

    share: float
    first: tuple[Atom, ...]
    second: tuple[Atom, ...]


def align(matcher: Matcher, left: Sequence[Form], right: Sequence[Form]) -> Alignment:
    """Pair each value whose operands are paired with an equal one, from the inputs upwards."""
    ours, others = _atoms(left), _atoms(right)
    partner: dict[int, Atom] = {}
    taken: dict[int, Atom] = {}
    waiting = dict.fromkeys(others)
    for atom in ours:
        if not _ready(atom, partner):
            continue
        for other in waiting:
            if not (_similar(atom, other) and _ready(other, taken)):
                continue
            if isinstance(matcher.atoms(atom, other), Match):
                partner[id(atom)], taken[id(other)] = other, atom
                del waiting[other]
                break
    operations = [atom for atom in ours if isinstance(atom, Operation)]
    matched = sum(id(atom) in partner for atom in operations)
    return Alignment(
        matched / max(len(operations), 1),
        _first_unpaired(ours, partner),
        _first_unpaired(others, taken),
    )


def _first_unpaired(atoms: Sequence[Atom], paired: dict[int, Atom]) -> tuple[Atom, ...]:
    """Values without a partner whose operands have one, but for moves, which may stand anywhere."""
    alone = [atom for atom in atoms if id(atom) not in paired]
    first = {id(atom) for atom in alone if _ready(atom, paired)}
    moves = {id(a) for a in alone if id(a) in first and _kind(a) in ("reshape", "permute")}
    return tuple(
        atom
        for atom in alone
        if id(atom) in first
        or (
            _kind(atom) in POINTWISE
            and all(id(each) in paired or id(each) in moves for each in _operands(atom))
        )
    )


def _kind(atom: Atom) -> str:
    return atom.kind if isinstance(atom, Operation) else ""


def _similar(left: Atom, right: Atom) -> bool:
    if isinstance(left, Operation) and isinstance(right, Operation):
        return left.kind == right.kind and left.shape == right.shape
    return type(left) is type(right)


def _ready(atom: Atom, paired: dict[int, Atom]) -> bool:
    return all(id(each) in paired for each in _operands(atom))


def _operands(atom: Atom) -> list[Atom]:
    return [inner for form in reads(atom) if isinstance(form, Form) for inner, _ in form.terms]


def _atoms(outputs: Sequence[Form]) -> list[Atom]:
    """The atoms that outputs are made of, operands before what reads them."""
    order: dict[Atom, None] = {}
    seen: set[int] = set()
    stack = [(atom, False) for form in reversed(outputs) for atom, _ in reversed(form.terms)]
    while stack:
        atom, ready = stack.pop()
        if ready:
            order[atom] = None
        elif id(atom) not in seen:
            seen.add(id(atom))
            stack.append((atom, True))
            stack += [(inner, False) for inner in _operands(atom)]
    return list(order)
