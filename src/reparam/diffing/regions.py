"""One side of the place where two networks part, as a person looks at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten

import torch
from torch import Tensor

from reparam.diffing.values import Atom, Constant, Cut, Form, Input, Map, Operation

_AROUND = 3
"""Numbers that are shown on each side of one that parts."""


@dataclass(frozen=True)
class Numbers:
    """Some of the numbers of a region, around the one that parts.

    Attributes:
        rows: The numbers.
        at: Row and column of the one that parts.
        starts: Which row and which column of all numbers these begin with.
        plane: Where this part lies: output channel, then input channel, as far as there are more.

    """

    rows: tuple[tuple[float, ...], ...]
    at: tuple[int, int]
    starts: tuple[int, int]
    plane: tuple[int, ...] = ()


@dataclass(frozen=True)
class Region:
    """One side of the place where two networks part.

    Attributes:
        reads: What it is computed from, which both sides have.
        operators: Names and kinds of the operations in it, first to last.
        computes: What they are together, for each value that is read.
        numbers: Those around the one that parts, where numbers do.

    """

    reads: tuple[str, ...]
    operators: tuple[tuple[str, str], ...]
    computes: tuple[str, ...]
    numbers: Numbers | None = None


def region_of(
    values: Sequence[Form | Atom], kind: Callable[[str], str], numbers: Tensor | None,
    index: Sequence[int],
) -> Region:  # fmt: skip
    """Describe values; ``kind`` says of a name in the network what it is."""
    reads = dict.fromkeys(words for value in values for words in _reads(value))
    operators = {name: kind(name) for value in values for _, name in names(value) if name}
    computes = dict.fromkeys(words for value in values for words in _computed(value))
    around = None if numbers is None else _around(numbers, index)
    return Region(tuple(reads), tuple(operators.items()), tuple(computes), around)


def names(value: Form | Atom) -> list[tuple[str, str]]:
    """The operations that a value is made of, first to last: how each is called, and its name."""
    match value:
        case Operation(where=where, kind=kind, args=args):
            inner = [(name, name) for arg in args for name in arg.where if name]
            return [*inner, (f"{kind} at {where}", where)]
        case Cut(form=form):
            return names(form)
        case Form(where=where):
            return [(name, name) for name in where if name] or [("an input", "")]
        case Constant(where=where):
            return [(where, where)]
        case Input():
            return [("an input", "")]


def _computed(value: Form | Atom) -> list[str]:
    match value:
        case Operation():
            return [setting(value)]
        case Cut(form=form):
            return _computed(form)
        case Form(terms=terms):
            return [str(m.geometry) if isinstance(m, Map) else "a factor" for _, m in terms]
        case _:
            return []


def setting(operation: Operation) -> str:
    """An operation with its attributes."""
    told = ", ".join(f"{name}={value}" for name, value in operation.attributes)
    return f"{operation.kind}({shorten(told, 100)})"


def _reads(value: Form | Atom) -> list[str]:
    match value:
        case Operation(args=args):
            return [words for arg in args for words in _reads(arg)]
        case Cut(form=form):
            return _reads(form)
        case Form(terms=terms):
            return [_source(atom) for atom, _ in terms]
        case _:
            return [_source(value)]


def _source(atom: Atom) -> str:
    size = "×".join(map(str, atom.shape))
    match atom:
        case Input(index=index):
            return f"input {index + 1}, {size}"
        case Operation(kind=kind, where=where):
            return f"{kind} at {where}, {size}"
        case Constant(where=where):
            return f"numbers stored at {where}, {size}"
        case Cut():
            return f"what {names(atom)[-1][0]} returns, {size}"


def _around(numbers: Tensor, index: Sequence[int]) -> Numbers:
    """The part of all numbers that is near one: of a kernel its taps, else what lies beside."""
    plane = numbers[tuple(index[:-2])] if numbers.dim() > 2 else numbers
    plane = plane.reshape(-1, plane.shape[-1]) if plane.dim() else plane.reshape(1, 1)
    row, column = (0, 0, *index)[-2:]
    starts = [_start(at, size) for at, size in zip((row, column), plane.shape, strict=True)]
    reach = 2 * _AROUND + 1
    shown = plane[starts[0] : starts[0] + reach, starts[1] : starts[1] + reach]
    rows = tuple(tuple(each) for each in shown.to(torch.float64).tolist())
    return Numbers(rows, (row - starts[0], column - starts[1]), (starts[0], starts[1]),
                   tuple(index[:-2]))  # fmt: skip


def _start(at: int, size: int) -> int:
    return max(0, min(at - _AROUND, size - 2 * _AROUND - 1))
