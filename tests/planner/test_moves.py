"""Operations per channel that move to where a convolution can take them, and back if none does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from reparam.algebra import evaluate
from reparam.graph.ir import Kind
from reparam.planner import Candidate, Selection, select
from reparam.planner.moves import Direction, plan_moves

from .programs import Writer, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from reparam.graph.ir import Node, Program


def agree(_: Candidate) -> str | None:
    return None


def behind_permute(write: Writer) -> list[Node]:
    return [write.norm(write.swap(write.conv(write.input, size=3)))]


def behind_permute_and_dropout(write: Writer) -> list[Node]:
    return [write.norm(write.swap(write.alias(write.conv(write.input, size=3))))]


def behind_cat(write: Writer) -> list[Node]:
    parts = (write.conv(write.input, 2, 3), write.conv(write.input, 6))
    return [write.norm(write.cat(*parts))]


def behind_cat_of_sums(write: Writer) -> list[Node]:
    both = write.add(write.conv(write.input, 2, 3), write.conv(write.input, 2))
    return [write.norm(write.cat(both, write.conv(write.input, 6)))]


def behind_cat_of_cats(write: Writer) -> list[Node]:
    inner = write.cat(write.conv(write.input, 2, 3), write.conv(write.input, 1))
    return [write.norm(write.cat(inner, write.conv(write.input, 6)))]


def behind_permute_of_cat(write: Writer) -> list[Node]:
    parts = (write.conv(write.input, 2, 3), write.conv(write.input, 6))
    return [write.norm(write.swap(write.cat(*parts)))]


def before_several_layers(write: Writer) -> list[Node]:
    normed = write.norm(write.relu(write.input))
    return [write.conv(normed, 2), write.conv(normed, 3)]


FOLD = (
    behind_permute,
    behind_permute_and_dropout,
    behind_cat,
    behind_cat_of_sums,
    behind_cat_of_cats,
    behind_permute_of_cat,
    before_several_layers,
)


def beside_a_residual(write: Writer) -> list[Node]:
    """The permuted value is read by two."""
    swapped = write.swap(write.conv(write.input, size=3))
    return [write.norm(swapped), write.relu(swapped)]


def behind_a_cat_with_an_input(write: Writer) -> list[Node]:
    """One part is no layer that could take its channels."""
    return [write.norm(write.cat(write.conv(write.input, 2, 3), write.relu(write.input)))]


def behind_a_cat_with_a_lone_part(write: Writer) -> list[Node]:
    """One part is a norm that has no layer before it, so its copy cannot fold."""
    lone = write.norm(write.relu(write.input))
    return [write.norm(write.cat(write.conv(write.input, 2, 3), lone))]


def before_a_padded_layer(write: Writer) -> list[Node]:
    """The shift of the norm would be seen through the padding of one of the two."""
    normed = write.norm(write.relu(write.input))
    return [write.conv(normed, 2), write.conv(normed, 3, 3)]


def before_a_layer_and_a_relu(write: Writer) -> list[Node]:
    normed = write.norm(write.relu(write.input))
    return [write.conv(normed, 2), write.relu(normed)]


def behind_a_permute_that_starts_the_program(write: Writer) -> list[Node]:
    return [write.norm(write.swap(write.input))]


def behind_cat_of_one_value_twice(write: Writer) -> list[Node]:
    part = write.conv(write.input, 2, 3)
    return [write.norm(write.cat(part, part))]


STAY = (
    beside_a_residual,
    behind_a_cat_with_an_input,
    behind_a_cat_with_a_lone_part,
    before_a_padded_layer,
    before_a_layer_and_a_relu,
    behind_a_permute_that_starts_the_program,
    behind_cat_of_one_value_twice,
)


def written(make: Callable[[Writer], list[Node]]) -> tuple[Program, list[Node]]:
    write = Writer(4)
    seen = make(write)
    return write.pin(*seen), seen


def norms(program: Program) -> list[Node]:
    """The norms, where they stand."""
    return [n for n in program.nodes if n.what == "batch norm" and n.twin_of is None]


def after_folding(selection: Selection) -> dict:
    return {
        c.output: (c.source, evaluate(c.expression))
        for c in selection.regions
        if c.expression is not None
    }


@pytest.mark.parametrize("make", [*FOLD, *STAY])
def test_the_function_stays_the_same(make: Callable[[Writer], list[Node]]) -> None:
    program, seen = written(make)
    x = torch.randint(-3, 4, (2, 4, 9)).double()
    expected = [run(program, x, {})[n] for n in seen]
    found = run(program, x, after_folding(select(program, agree)))
    for node, value in zip(seen, expected, strict=True):
        assert torch.equal(found[node], value)


@pytest.mark.parametrize("make", FOLD)
def test_the_norm_is_gone_from_where_it_stood(make: Callable[[Writer], list[Node]]) -> None:
    program, _ = written(make)
    selection = select(program, agree)
    (norm,) = norms(program)
    assert norm.kind is Kind.ALIAS
    copies = [n for n in program.nodes if n.twin_of is norm and n.kind is not Kind.ALIAS]
    assert copies
    assert set(copies) <= selection.folded
    assert {c.key for c in copies} == {norm.key}
    parts = sorted(c.part for c in copies if c.part is not None)
    assert [p[0] for p in parts[1:]] == [p[1] for p in parts[:-1]]


@pytest.mark.parametrize("make", STAY)
def test_the_norm_stays_where_it_is(make: Callable[[Writer], list[Node]]) -> None:
    program, _ = written(make)
    before = [(n, n.kind, n.inputs, n.leaf) for n in program.nodes]
    select(program, agree)
    assert [(n, n.kind, n.inputs, n.leaf) for n in program.nodes] == before


@pytest.mark.parametrize("make", FOLD)
def test_a_move_is_undone_when_a_copy_may_not_fold(make: Callable[[Writer], list[Node]]) -> None:
    program, _ = written(make)
    before = [(n, n.kind, n.inputs, n.leaf) for n in program.nodes]
    layers = [n for n in program.nodes if n.is_mixing]

    def veto(region: Candidate) -> str | None:
        return "kept by a hook" if layers[-1] in region.nodes else None

    selection = select(program, veto)
    assert [(n, n.kind, n.inputs, n.leaf) for n in program.nodes] == before
    assert not any(n.twin_of for n in selection.folded)


def test_one_move_that_fails_leaves_the_other() -> None:
    write = Writer(4)
    good = write.norm(write.swap(write.conv(write.input, size=3)))
    bad = write.norm(write.cat(write.conv(write.input, 2), write.norm(write.relu(write.input))))
    select(write.pin(good, bad), agree)
    assert good.kind is Kind.ALIAS
    assert bad.kind is Kind.AFFINE


def test_what_is_excluded_is_not_moved() -> None:
    program, seen = written(behind_permute)
    assert plan_moves(program, {(seen[0].key, way) for way in Direction}) == []
    assert len(plan_moves(program, set())) == 1


def test_undoing_in_reverse_restores_everything() -> None:
    program, _ = written(behind_permute_of_cat)
    before = [(n, n.kind, n.inputs, n.leaf) for n in program.nodes]
    moves = plan_moves(program, set())
    assert len(moves) == 2
    for move in reversed(moves):
        move.undo()
    assert [(n, n.kind, n.inputs, n.leaf) for n in program.nodes] == before


def test_a_slice_of_channels_is_the_slice_of_the_numbers() -> None:
    program, (norm,) = written(behind_cat)
    whole = norm.leaf
    assert whole is not None
    (move,) = plan_moves(program, set())
    numbers = evaluate(whole)
    assert [copy.part for copy in move.copies] == [(0, 2, 8), (2, 8, 8)]
    for copy in move.copies:
        assert copy.leaf is not None
        assert copy.part is not None
        part = evaluate(copy.leaf)
        start, stop, _ = copy.part
        assert torch.equal(part.kernel, numbers.kernel[start:stop])
        assert part.bias is not None
        assert numbers.bias is not None
        assert torch.equal(part.bias, numbers.bias[start:stop])
