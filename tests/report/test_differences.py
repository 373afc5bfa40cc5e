"""The page of a comparison says where two networks part, and draws both there."""

from __future__ import annotations

import dataclasses
import json

import pytest

import reparam
from reparam.errors import InputError
from reparam.report import Results, load_results, merge, page_html, to_json

from . import difference_cases
from .reading import headline, words


def results(change: str) -> Results:
    return difference_cases.page(difference_cases.parted(change))


def shown(of: Results) -> str:
    """The words of a page."""
    return words(page_html(of).partition("<body>")[2])


@pytest.mark.parametrize("change", ["", "weight", "bias", "operation", "infinite"])
def test_what_was_found_survives_json(change: str) -> None:
    found = results(change)
    assert load_results(json.loads(to_json(found))) == found
    page_html(found)


def test_the_page_names_layers_channel_tap_and_both_values() -> None:
    found = difference_cases.parted("weight")
    assert found.detail["index"] == (2, 1, 0, 2)
    told = shown(difference_cases.page(found))
    assert "output channel 2, input 1, tap (0, 2)" in told
    for value in (found.detail["left"], found.detail["right"]):
        assert f"{value:.9g}" in told
    for name in ("Conv2d", "BatchNorm2d", "mine", "yours", "3×3 conv 3 → 8"):
        assert told.count(name) >= 2 or name in ("mine", "yours")


def test_the_drawn_kernel_is_the_fused_kernel() -> None:
    (record,) = results("weight").differences
    folded = reparam.fuse(difference_cases.net(), difference_cases.X)
    kernel = folded[0].weight.detach()[2, 1]
    for row, numbers in enumerate(record.sides[0].rows):
        for column, number in enumerate(numbers):
            assert float(number) == pytest.approx(float(kernel[row, column]), rel=1e-3)
    first, second = (side.rows[0][2] for side in record.sides)
    assert float(second) == pytest.approx(1.5 * float(first), rel=1e-3)
    assert [side.at for side in record.sides] == [(0, 2), (0, 2)]


def test_other_partings_are_drawn_without_a_kernel() -> None:
    (record,) = results("operation").differences
    assert [side.operators[-1] for side in record.sides] == [("2", "ReLU"), ("2", "ReLU6")]
    assert not any(side.rows for side in record.sides)
    assert "6.0" in shown(results("operation"))


def test_a_proof_is_told_as_one_and_has_no_drawing() -> None:
    equal = results("")
    assert headline(equal).startswith("Proven equal")
    assert "parting" not in page_html(equal).partition("<body>")[2]


def test_several_comparisons_share_a_page() -> None:
    both = merge([results(""), results("weight")])
    assert len(both.differences) == 2
    assert "1 of 2" in headline(both)
    assert shown(both).count("mine and yours") >= 2


def test_what_cannot_be_drawn_is_refused_with_its_place() -> None:
    found = results("weight")
    for change in ({"rows": [["x"]], "at": [0, 0]}, {"at": [9, 0]}):
        stored = json.loads(to_json(found))
        stored["differences"][0]["sides"][0] |= change
        with pytest.raises(InputError, match="mine where it parts"):
            load_results(stored)


def test_names_are_text() -> None:
    hostile = dataclasses.replace(
        results("weight").differences[0], first="<script>alert(1)</script>", parts="<b>x</b>"
    )
    page = page_html(dataclasses.replace(results("weight"), differences=(hostile,)))
    assert "<script>alert" not in page
    assert "<b>x</b>" not in page
