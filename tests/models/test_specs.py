"""Specs: what the papers say about widths, groups, attention and depths, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reparam.errors import InputError
from reparam.models import BRANCHES, SPECS, BlockSpec, BranchSpec, MobileOneSpec, RepVGGSpec

SMALL = RepVGGSpec(depths=(2, 3, 1), widths=(8, 16, 32), stem_width=8)


def test_widths_follow_the_multipliers_of_the_paper():
    assert SPECS["repvgg_a0"].widths == (48, 96, 192, 1280)
    assert SPECS["repvgg_a0"].stem_width == 48
    assert SPECS["repvgg_a2"].widths == (96, 192, 384, 1408)
    assert SPECS["repvgg_b3"].widths == (192, 384, 768, 2560)
    assert SPECS["repvgg_b3"].stem_width == 64
    assert SPECS["mobileone_s4"].widths == (192, 448, 896, 2048)


def test_every_second_block_after_the_stem_is_grouped():
    blocks = [block for stage in SPECS["repvgg_b1g4"].stages() for block in stage]
    assert len(blocks) == 28
    assert [i for i, block in enumerate(blocks) if block.groups == 4] == list(range(2, 28, 2))


def test_strides_and_channels_chain():
    stages = SMALL.stages(in_channels=1)
    blocks = [block for stage in stages for block in stage]
    assert blocks[0].in_channels == 1
    assert [b.in_channels for b in blocks[1:]] == [b.out_channels for b in blocks[:-1]]
    assert [[b.stride for b in stage] for stage in stages] == [[2], [2, 1], [2, 1, 1], [2]]


def test_one_number_stands_for_every_stage():
    assert replace(SMALL, strides=(2, 2, 2)).stages() == SMALL.stages()
    assert replace(SMALL, dilations=2).stages() == replace(SMALL, dilations=(2, 2, 2)).stages()


def test_mobileone_alternates_depthwise_and_pointwise():
    _, *stages = SPECS["mobileone_s0"].stages()
    for stage in stages:
        for depthwise, pointwise in zip(stage[::2], stage[1::2], strict=True):
            assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
            assert (depthwise.kernel_size, pointwise.kernel_size) == (3, 1)
            assert (pointwise.groups, pointwise.stride) == (1, 1)
            assert not pointwise.has_pointwise


def test_mobileone_stem_has_one_kernel_whatever_the_units_have():
    (stem,), *stages = SPECS["mobileone_s0"].stages()
    assert stem.branches.kernels == 1
    assert {b.branches.kernels for stage in stages for b in stage} == {4}


def test_mobileone_s4_attends_in_its_last_units():
    _, *stages = SPECS["mobileone_s4"].stages()
    attentive = [[bool(block.squeeze) for block in stage] for stage in stages]
    assert attentive[:2] == [[False] * 4, [False] * 16]
    assert attentive[2] == [False] * 10 + [True] * 10
    assert attentive[3] == [True, True]


def test_d2se_squeezes_sixteenfold_everywhere():
    blocks = [block for stage in SPECS["repvgg_d2se"].stages() for block in stage]
    assert all(block.squeeze == block.out_channels // 16 for block in blocks)


def test_deploy_form_differs_in_the_branches_only():
    deploy = SMALL.deploy()
    assert deploy.branches.single
    assert replace(deploy, branches=SMALL.branches) == SMALL


def test_branch_choices_of_the_ablation():
    companions = {name: (spec.pointwise, spec.identity) for name, spec in BRANCHES.items()}
    assert companions["repvgg"] == (True, True)
    assert companions["identity"] == (False, True)
    assert companions["1x1"] == (True, False)
    assert companions["neither"] == (False, False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BranchSpec(kernels=0), "0 kxk branches"),
        (lambda: BranchSpec(norm="layer"), "'layer'"),
        (lambda: BlockSpec(in_channels=4, out_channels=4, kernel_size=4), "must be odd"),
        (lambda: BlockSpec(in_channels=4, out_channels=0), "out_channels"),
        (lambda: BlockSpec(in_channels=6, out_channels=8, groups=4), "6 -> 8 channels"),
        (lambda: replace(SMALL, widths=(8, 16)), r"widths has 2 values .* depths has 3"),
        (lambda: replace(SMALL, strides=(2, 2)), "strides has 2 values"),
        (lambda: replace(SMALL, dilations=(1,)), "dilations has 1 values"),
        (lambda: replace(SMALL, depths=()), "at least one block"),
        (lambda: replace(SMALL, depths=(1, 0, 1)), "at least one block"),
        (lambda: replace(SMALL, groups=3).stages(), "cannot be split into 3 groups"),
        (
            lambda: MobileOneSpec(depths=(1,), widths=(8,), stem_width=8, attentive=(0, 1)),
            "attentive has 2 values",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
