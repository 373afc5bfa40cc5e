"""Operations per channel that move to where a convolution can take them, and back if none does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from reparam import algebra
from reparam.algebra import evaluate
from reparam.planner import Candidate, Selection, select
from reparam.planner.moves import Direction, moved
from reparam.program import Affine, Alias
from reparam.reasons import Reason, Why

from .programs import Writer, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from reparam.program import Node, Program


def agree(_: Candidate) -> Reason | None:
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


def behind_a_cat_with_a_lone_part(write: Writer) -> list[Node]:
    """One part is a norm that has no layer before it: it takes its channels itself."""
    lone = write.norm(write.relu(write.input))
    return [write.norm(write.cat(write.conv(write.input, 2, 3), lone))]


def on_a_term_of_a_sum(write: Writer) -> list[Node]:
    """The other term is a norm that a padded layer reads, too: scales pass that, shifts do not."""
    other = write.norm(write.relu(write.input))
    inner = write.norm(write.relu(write.conv(other, size=3)))
    return [write.conv(write.add(inner, other), 3)]


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

BESIDE_NORMS = (behind_a_cat_with_a_lone_part, on_a_term_of_a_sum)


def beside_a_residual(write: Writer) -> list[Node]:
    """The permuted value is read by two."""
    swapped = write.swap(write.conv(write.input, size=3))
    return [write.norm(swapped), write.relu(swapped)]


def behind_a_cat_with_an_input(write: Writer) -> list[Node]:
    """One part is no layer that could take its channels."""
    return [write.norm(write.cat(write.conv(write.input, 2, 3), write.relu(write.input)))]


def on_a_term_beside_what_is_no_layer(write: Writer) -> list[Node]:
    other = write.relu(write.input)
    inner = write.norm(write.relu(write.conv(other, size=3)))
    return [write.conv(write.add(inner, other), 3)]


def on_a_term_of_a_sum_before_a_padded_layer(write: Writer) -> list[Node]:
    """The shift would be seen through the padding behind the sum."""
    other = write.norm(write.relu(write.input))
    inner = write.norm(write.relu(write.conv(other, size=3)))
    return [write.conv(write.add(inner, other), 3, 3)]


def on_a_term_that_is_read_by_a_relu(write: Writer) -> list[Node]:
    other = write.norm(write.relu(write.input))
    inner = write.norm(write.relu(write.conv(write.relu(other), size=3)))
    return [write.conv(write.add(inner, other), 3)]


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
    on_a_term_beside_what_is_no_layer,
    on_a_term_of_a_sum_before_a_padded_layer,
    on_a_term_that_is_read_by_a_relu,
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
    return [n for n in program.nodes if n.what == "batch norm" and not n.is_copy]


def after_folding(selection: Selection) -> dict:
    return {
        c.output: (c.source, evaluate(c.expression))
        for c in selection.regions
        if c.expression is not None
    }


@pytest.mark.parametrize("make", [*FOLD, *BESIDE_NORMS, *STAY])
def test_the_function_stays_the_same(make: Callable[[Writer], list[Node]]) -> None:
    program, seen = written(make)
    x = torch.randint(-3, 4, (2, 4, 9)).double()
    expected = [run(program, x, {})[n] for n in seen]
    selection = select(program, agree)
    found = {n.key: y for n, y in run(selection.program, x, after_folding(selection)).items()}
    for node, value in zip(seen, expected, strict=True):
        assert torch.equal(found[node.key], value)


@pytest.mark.parametrize("make", FOLD)
def test_the_norm_is_gone_from_where_it_stood(make: Callable[[Writer], list[Node]]) -> None:
    program, _ = written(make)
    selection = select(program, agree)
    (norm,) = norms(program)
    assert all(isinstance(n, Alias) for n in norms(selection.program))
    copies = [n for n in selection.program.nodes if n.is_copy and isinstance(n, Affine)]
    assert copies
    assert set(copies) <= selection.folded
    assert {c.key for c in copies} == {norm.key}
    acting = [c.moved.channels for c in copies]
    every = tuple(range(norm.leaf.geometry.out_channels))
    # In each copy all channels, or each channel in the copies of one part.
    assert set(acting) == {every} or sorted(set(sum(acting, ()))) == list(every)


@pytest.mark.parametrize("make", BESIDE_NORMS)
def test_the_other_norm_takes_what_is_left(make: Callable[[Writer], list[Node]]) -> None:
    program, _ = written(make)
    selection = select(program, agree)
    (region,) = (r for r in selection.regions if r.norm is not None)
    other, moving = sorted(norms(program), key=lambda n: n.order)
    assert region.norm is other
    stands = {n.key: type(n) for n in selection.program.nodes if not n.is_copy}
    assert (stands[other.key], stands[moving.key]) == (Affine, Alias)


def test_a_norm_on_a_term_of_a_sum_divides_the_other_term_and_what_reads_it_multiplies() -> None:
    program, _ = written(on_a_term_of_a_sum)
    norm = max(norms(program), key=lambda n: n.order)
    numbers = evaluate(norm.leaf)
    copies = {c.moved.inverse: c for c in select(program, agree).program.nodes if c.is_copy}
    less, scale = evaluate(copies[True].leaf), numbers.kernel.flatten()
    assert torch.equal(less.kernel.flatten(), 1 / scale)
    assert less.bias is None
    shifts = [evaluate(c.leaf).bias for c in select(program, agree).program.nodes if c.is_copy]
    assert sum(b is not None for b in shifts) == 1


def test_small_factors_are_not_divided_by() -> None:
    write = Writer(4)
    other = write.norm(write.relu(write.input))
    few = algebra.scale(torch.tensor([1.0, 1.0, 2.0**-7, 1.0]).double())
    inner = write._affine(write.relu(write.conv(other, size=3)), few, "norm", 16, is_norm=True)
    program = write.pin(write.conv(write.add(inner, other), 3))
    assert select(program, agree).program is program


@pytest.mark.parametrize("make", STAY)
def test_the_norm_stays_where_it_is(make: Callable[[Writer], list[Node]]) -> None:
    program, _ = written(make)
    assert select(program, agree).program is program


@pytest.mark.parametrize("make", FOLD)
def test_nothing_moves_when_a_copy_may_not_fold(make: Callable[[Writer], list[Node]]) -> None:
    program, _ = written(make)
    last = [n for n in program.nodes if n.is_convolution][-1].key

    def veto(region: Candidate) -> Reason | None:
        return Why.USED_ELSEWHERE() if last in {n.key for n in region.nodes} else None

    selection = select(program, veto)
    assert selection.program is program
    assert not any(n.is_copy for n in selection.folded)


def test_one_move_that_fails_leaves_the_other() -> None:
    write = Writer(4)
    good = write.norm(write.swap(write.conv(write.input, size=3)))
    bad = write.norm(write.cat(write.conv(write.input, 2), write.norm(write.input), write.input))
    program = select(write.pin(good, bad), agree).program
    stands = {n.key: type(n) for n in program.nodes if not n.is_copy}
    assert stands[good.key] is Alias
    assert stands[bad.key] is Affine


def test_what_is_excluded_is_not_moved() -> None:
    program, seen = written(behind_permute)
    assert moved(program, {(seen[0].key, way) for way in Direction}) == (program, [])
    assert len(moved(program, set())[1]) == 1


def test_moving_writes_a_new_program_and_leaves_the_old_one() -> None:
    program, _ = written(behind_permute_of_cat)
    before = [(n, n.inputs) for n in program.nodes]
    after, moves = moved(program, set())
    assert len(moves) == 2
    assert after is not program
    assert [(n, n.inputs) for n in program.nodes] == before


def test_a_slice_of_channels_is_the_slice_of_the_numbers() -> None:
    program, (norm,) = written(behind_cat)
    _, (move,) = moved(program, set())
    numbers = evaluate(norm.leaf)
    assert [copy.moved.channels for copy in move.copies] == [(0, 1), (2, 3, 4, 5, 6, 7)]
    for copy in move.copies:
        part = evaluate(copy.leaf)
        start, stop = copy.moved.channels[0], copy.moved.channels[-1] + 1
        assert torch.equal(part.kernel, numbers.kernel[start:stop])
        assert part.bias is not None
        assert numbers.bias is not None
        assert torch.equal(part.bias, numbers.bias[start:stop])
