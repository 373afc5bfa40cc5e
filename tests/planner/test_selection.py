"""Which regions the planner chooses, beside every way there is to cut a small program."""

from __future__ import annotations

import importlib
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reparam import algebra
from reparam.algebra import evaluate
from reparam.planner import Candidate, Selection, select
from reparam.planner.candidates import Candidates
from reparam.program import Affine, Concat
from reparam.reasons import Reason, Why

from .programs import Region, Writer, best_score, programs, regions_of, run, total_cost

if TYPE_CHECKING:
    from reparam.program import Node, Program

# Trying every set of regions takes 2 to the power of their number.
MOST_REGIONS = 18


def agree(_: Candidate) -> Reason | None:
    """Object to nothing."""
    return None


def chosen(among: list[Region], selection: Selection) -> list[Region]:
    """The chosen regions as the search by hand found them, with its prices."""
    table = {(r.output, r.source, r.nodes): r for r in among}
    return [table[c.output, c.source, c.nodes] for c in selection.regions]


def score(regions: list[Region]) -> tuple[Fraction, int]:
    return sum((r.macs for r in regions), Fraction(0)), sum(r.layers for r in regions)


def unmoved(program: Program) -> Selection:
    """Select without moving operations first, so that the program stays what it is."""
    return importlib.import_module("reparam.planner.select")._select_once(program, agree)


# ------------------------------------------------------------------------------ the best choice


@settings(derandomize=True)  # the search comes upon what the test below expects to fail, rarely
@given(program=programs(alone=True, most=6))
def test_no_set_of_regions_saves_more(program: Program) -> None:
    """In chains of layers and of blocks of branches."""
    regions = regions_of(program)
    assume(len(regions) <= MOST_REGIONS)
    assert score(chosen(regions, unmoved(program))) == best_score(regions)


@given(program=programs(most=6))
def test_regions_are_what_the_search_by_hand_finds(program: Program) -> None:
    """In any program: closed, exact, cheaper, disjoint, and priced alike."""
    regions = regions_of(program)
    selection = unmoved(program)
    found = chosen(regions, selection)
    for mine, theirs in zip(selection.regions, found, strict=True):
        before, after = mine.cost, mine.cost_after
        assert (before.stored - after.stored, before.layers - after.layers) == (
            theirs.stored,
            theirs.layers,
        )
    nodes = [node for region in found for node in region.nodes]
    assert len(nodes) == len(set(nodes))
    assert selection.folded == set(nodes)
    orders = [region.output.order for region in selection.regions]
    assert orders == sorted(orders)


@settings(max_examples=100)
@given(program=programs(most=5, thirds=True))
def test_the_choice_among_candidates_is_the_best(program: Program) -> None:
    """In any program, whoever reads its values."""
    found = Candidates(program).found.values()
    candidates = {(c.output, c.source, c.nodes) for several in found for c in several}
    regions = [r for r in regions_of(program) if (r.output, r.source, r.nodes) in candidates]
    assume(len(regions) <= MOST_REGIONS)
    assert score(chosen(regions, unmoved(program))) == best_score(regions)


# ------------------------------------------------------------------------------ every promise


def replaced(selection: Selection) -> dict:
    """The chosen regions as operators."""
    return {
        c.output: (c.source, evaluate(c.expression))
        for c in selection.regions
        if c.expression is not None
    }


def values_seen(program: Program, values: dict[Node, torch.Tensor]) -> list[torch.Tensor]:
    return [values[n] for n in program.nodes if n in program.pinned]


@given(program=programs(most=6))
def test_a_selection_keeps_the_function_and_costs_no_more(program: Program) -> None:
    """With moved operations; whole numbers make it equality."""
    x = torch.randint(-3, 4, (2, 4, 60)).double()
    x = x[:, : _width(program)]
    expected = values_seen(program, run(program, x, {}))
    before = total_cost(program)
    selection = select(program, agree)
    after = selection.program
    found = values_seen(after, run(after, x, replaced(selection)))
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    regions = chosen(regions_of(selection.program), selection)
    saved = score(regions)
    layers = sum(c.cost.layers - c.cost_after.layers for c in selection.regions)
    stored = sum(c.cost.stored - c.cost_after.stored for c in selection.regions)
    assert saved[0] >= 0
    assert layers >= len(selection.regions)
    assert stored >= -sum(region.biases for region in regions)
    after = total_cost(selection.program)
    # What moving added is taken back by the regions that the copies are in.
    assert after[0] - saved[0] <= before[0]
    assert after[2] - layers <= before[2]


def _width(program: Program) -> int:
    """The number of input channels that some reader of the input has."""
    known = {program.nodes[0]}
    for node in program.nodes:
        if node.inputs and node.inputs[0] in known:
            if isinstance(node, Affine):
                return node.leaf.geometry.in_channels
            known.add(node)
    return 4


@given(program=programs(most=6), data=st.data())
def test_what_is_objected_to_is_not_chosen(program: Program, data: st.DataObject) -> None:
    forbidden = data.draw(st.sampled_from(program.nodes))

    def veto(region: Candidate) -> Reason | None:
        held = forbidden.key in {node.key for node in region.nodes}
        return Why.UNKNOWN_TYPE() if held else None

    selection = select(program, veto)
    assert forbidden.key not in {node.key for node in selection.folded}
    for region, reason in selection.vetoed:
        assert reason == Why.UNKNOWN_TYPE()
        assert not region.nodes <= selection.folded


@given(program=programs(most=6))
def test_nothing_is_moved_where_nothing_may_fold(program: Program) -> None:
    selection = select(program, lambda _: Why.UNKNOWN_TYPE())
    assert selection.regions == []
    assert selection.program is program


# ------------------------------------------------------------------------------ by hand


def test_a_wide_bottleneck_is_folded_in_halves() -> None:
    """64 multiply-adds in one layer against 2 times 8: each half takes its norm, no more."""
    write = Writer(8)
    down = write.norm(write.conv(write.input, 1))
    up = write.norm(write.conv(down, 8))
    selection = unmoved(write.pin(up))
    assert [c.output for c in selection.regions] == [down, up]
    assert Why.MORE_WORK(after=64.0, before=16.0) in selection.reasons[up]


def test_a_narrow_bottleneck_becomes_one_layer() -> None:
    write = Writer(2)
    wide = write.norm(write.conv(write.input, 8))
    back = write.norm(write.conv(wide, 2))
    selection = unmoved(write.pin(back))
    assert [c.output for c in selection.regions] == [back]
    assert selection.regions[0].source is write.input


def test_a_block_of_branches_becomes_one_layer() -> None:
    write = Writer(4)
    x = write.relu(write.norm(write.conv(write.input, size=3)))
    branches = (write.norm(write.conv(x, size=3)), write.norm(write.conv(x)), write.norm(x))
    out = write.relu(write.add(*branches))
    first, second = unmoved(write.pin(out)).regions
    assert first.nodes == set(write.nodes[1:3])
    assert second.source is x
    assert len(second.nodes) == 6
    assert second.cost.layers == 6


def test_a_residual_around_an_activation_stays() -> None:
    write = Writer(4)
    inner = write.norm(write.conv(write.relu(write.norm(write.conv(write.input)))))
    out = write.add(inner, write.input)
    selection = unmoved(write.pin(out))
    assert [c.output for c in selection.regions] == [write.nodes[2], inner]
    assert selection.reasons[out] == [Why.NO_COMMON_SOURCE()]


def test_a_value_that_others_read_is_kept() -> None:
    write = Writer(4)
    middle = write.conv(write.input, size=3)
    normed = write.norm(middle)
    selection = unmoved(write.pin(normed, write.relu(middle)))
    assert selection.regions == []
    (reason,) = selection.reasons[normed]
    assert reason == Why.ALSO_READ(value="conv at conv1", readers="relu at relu3")


def test_an_output_is_kept() -> None:
    write = Writer(4)
    middle = write.conv(write.input, size=3)
    normed = write.norm(middle)
    selection = unmoved(write.pin(middle, normed))
    assert selection.regions == []
    assert selection.reasons[normed][0].kind is Why.IS_SEEN


def test_a_reader_of_the_shape_may_read_the_result() -> None:
    write = Writer(4)
    middle = write.conv(write.input, size=3)
    shape = write.shape(middle)
    normed = write.norm(middle)
    assert len(unmoved(write.pin(normed, shape)).regions) == 1


def test_a_reader_of_a_shape_that_would_change_is_in_the_way() -> None:
    write = Writer(2)
    middle = write.conv(write.input, 8)
    shape = write.shape(middle)
    last = write.conv(middle, 2, 3, padding=0)
    assert unmoved(write.pin(last, shape)).regions == []


def test_a_lone_norm_is_never_made_a_convolution() -> None:
    write = Writer(4)
    out = write.norm(write.relu(write.input))
    assert unmoved(write.pin(out)).regions == []


def test_norms_without_a_layer_become_one_of_them() -> None:
    write = Writer(4)
    x = write.relu(write.input)
    first, second = write.norm(x), write.norm(x)
    out = write.norm(write.add(first, second, x))
    (region,) = unmoved(write.pin(out)).regions
    assert region.norm is first
    assert region.gone == region.nodes - {first}
    assert (region.cost.layers, region.cost_after.layers) == (4, 1)


def test_scales_without_a_norm_stay() -> None:
    write = Writer(4)
    scale = algebra.scale(torch.arange(1.0, 5).double())
    out = write._affine(write._affine(write.input, scale, "scale", 4), scale, "scale", 4)
    assert unmoved(write.pin(out)).regions == []


def test_a_bias_through_padding_is_the_reason_given() -> None:
    write = Writer(2)
    wide = write.conv(write.input, 8, bias=True)
    out = write.conv(wide, 2, 3)
    selection = unmoved(write.pin(out))
    assert selection.regions == []
    assert selection.reasons[out][0].kind is Why.BIAS_THROUGH_PADDING


def test_a_layer_that_would_cost_more_at_the_borders_is_not_made() -> None:
    """A price per position leaves out that the cheap last layer runs on more of them."""
    write = Writer(4)
    dense = write.conv(write.input, 4)
    out = write.conv(dense, 4, padding=1, groups=4)
    selection = unmoved(write.pin(out))
    assert selection.regions == []
    assert selection.reasons[out][0].kind is Why.MORE_WORK_AT_BORDERS


def test_layers_that_enlarge_their_input_fold_where_that_is_cheaper_everywhere() -> None:
    write = Writer(2)
    wide = write.conv(write.input, 8)
    (region,) = unmoved(write.pin(write.conv(wide, 2, 3, padding=2))).regions
    assert region.layer_geometry.weights == 2 * 2 * 3 < 8 * 2 * 3


def test_strides_are_priced_where_the_positions_are() -> None:
    """Folding a 1x1 of stride 2 into the 3x3 before it would compute four times too much."""
    write = Writer(4)
    first = write.conv(write.input, 4, 3)
    last = write.conv(first, 4, stride=4)
    (region,) = unmoved(write.pin(last)).regions
    assert region.cost.macs == 4 * 4 * 3 + 4 * 4 / 4
    assert region.cost_after.macs == 4 * 4 * 3 / 4


def test_regions_on_both_sides_of_an_output() -> None:
    write = Writer(4)
    first = write.norm(write.conv(write.input, 8))
    second = write.norm(write.conv(first, 4))
    assert [c.output for c in unmoved(write.pin(first, second)).regions] == [first, second]


def test_a_narrow_branch_beside_an_identity_behind_another_region() -> None:
    """One layer of 16 multiply-adds saves less than 4->1 and 1->4, whatever folds before it."""
    write = Writer(4)
    x = write.relu(write.conv(write.conv(write.input, 8), 4))
    branch = write.conv(write.conv(write.conv(x, 8), 1), 4)
    program = write.pin(write.add(branch, x))
    regions = regions_of(program)
    assert score(chosen(regions, unmoved(program))) == best_score(regions)


def test_of_equally_cheap_regions_those_with_fewer_layers_are_taken() -> None:
    write = Writer(2)
    first = write.conv(write.input, 8, 3)
    second = write.norm(write.conv(first, 4, 2, stride=3, padding=0, bias=True))
    program = write.pin(write.conv(second, 4, 3, padding=0, bias=True))
    regions = regions_of(program)
    assert score(chosen(regions, unmoved(program))) == best_score(regions)


def test_regions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long chain of layers is cut instead of searched without end."""
    monkeypatch.setattr("reparam.planner.candidates._LONGEST", 8)
    write = Writer(2)
    x = write.input
    for _ in range(20):
        x = write.conv(x)
    found = unmoved(write.pin(x)).regions
    assert max(len(c.nodes) for c in found) == 8
    assert sum(len(c.nodes) for c in found) == 20


def test_kinds_that_are_not_affine_end_a_region() -> None:
    write = Writer(2)
    joined = write.cat(write.conv(write.input), write.conv(write.input))
    out = write.norm(joined)
    assert isinstance(joined, Concat)
    assert unmoved(write.pin(out)).regions == []
