"""The page says what the results say, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from reparam.errors import InputError
from reparam.report import load_results, page_html, render, sentence, to_json
from reparam.report.marks import Row, bar, bar_chart
from reparam.report.results import AgreementRecord, BlockRecord, BranchRecord, Results
from reparam.report.timing import against_others, on_one_scale

from .reading import headline, numbers, table, words

if TYPE_CHECKING:
    from pathlib import Path


def flipped(results: Results) -> Results:
    """The same results with the times and memories of the two forms exchanged."""
    swap = {"train": "deploy", "deploy": "train"}
    group = results.latency[0]
    rows = tuple(dataclasses.replace(r, model=swap.get(r.model, r.model)) for r in group.rows)
    memory = results.memory[0]
    traces = tuple(dataclasses.replace(t, model=swap.get(t.model, t.model)) for t in memory.traces)
    return dataclasses.replace(
        results,
        latency=(dataclasses.replace(group, rows=rows),),
        memory=(dataclasses.replace(memory, traces=traces),),
    )


def test_headline_is_computed(results: Results) -> None:
    assert headline(results) == (
        "22 convolutions became 11: the same predictions on all 360 test images, "
        "2.05× faster in eager PyTorch, 2.00× less peak activation memory in a block."
    )


def test_headline_hides_nothing(results: Results) -> None:
    worse = dataclasses.replace(
        flipped(results), agreement=(AgreementRecord("train", "deploy", 358, 360),)
    )
    assert headline(worse) == (
        "22 convolutions became 11: the predictions differ on 2 of 360 test images, "
        "2.05× slower in eager PyTorch, 2.00× more peak activation memory in a block."
    )


def test_the_headline_s_factor_is_that_of_the_times_below_it(results: Results) -> None:
    group = results.latency[0]
    uneven = {"train": (6.0, 9.0, 12.0), "deploy": (2.0, 4.0, 4.0)}
    rows = tuple(
        dataclasses.replace(row, samples_ms=uneven[row.model])
        if (row.model in uneven and row.engine == "eager")
        else row
        for row in group.rows
    )
    shown = dataclasses.replace(results, latency=(dataclasses.replace(group, rows=rows),))
    assert "2.25× faster in eager PyTorch" in headline(shown)
    assert "9.00 ms → 4.00 ms" in page_html(shown)


def test_engines_of_very_different_speed_have_their_own_scale(results: Results) -> None:
    group = results.latency[0]
    assert on_one_scale(group) == [["eager", "ONNX Runtime"]]
    slow = tuple(
        dataclasses.replace(row, samples_ms=tuple(100 * ms for ms in row.samples_ms))
        if row.engine == "eager"
        else row
        for row in group.rows
    )
    apart = dataclasses.replace(group, rows=slow)
    assert on_one_scale(apart) == [["ONNX Runtime"], ["eager"]]
    html = page_html(dataclasses.replace(results, latency=(apart,)))
    assert f"Latency, {group.title}, ONNX Runtime" in html
    assert f"Latency, {group.title}, eager" in html


def test_headline_without_measurements_is_the_title() -> None:
    bare = Results(title="Nothing yet", created="", models=())
    assert headline(bare) == "Nothing yet"
    assert "Nothing yet" in page_html(bare)


def test_equal_speed_is_called_equal(results: Results) -> None:
    group = results.latency[0]
    rows = tuple(dataclasses.replace(row, samples_ms=(2.0, 2.01)) for row in group.rows)
    same = dataclasses.replace(results, latency=(dataclasses.replace(group, rows=rows),))
    assert "the same speed" in headline(same)


def test_no_winner_is_named_that_did_not_win_most_rounds(results: Results) -> None:
    group = results.latency[0]
    noisy = {"train": (5.0, 5.0, 5.0, 1.0), "deploy": (4.0, 6.0, 2.0, 3.0)}
    rows = tuple(
        dataclasses.replace(row, samples_ms=noisy.get(row.model, row.samples_ms))
        for row in group.rows
    )
    unsure = dataclasses.replace(results, latency=(dataclasses.replace(group, rows=rows),))
    assert "no clear difference in speed" in headline(unsure)
    duel = against_others(unsure, unsure.latency[0])[0]
    assert sentence("duel", duel).endswith("is clearly faster in this run.")
    (first, *_) = table(unsure, f"Deploy form against others, {group.title}")[1:]
    assert first[1].endswith("undecided")


@pytest.mark.parametrize(
    ("correct", "told"),
    [(340, "gained 11.1 points over plain"), (305, "do not tell"), (200, "lost 27.8 points")],
)
def test_what_branches_bring_is_told_as_far_as_the_images_tell_it(
    results: Results, correct: int, told: str
) -> None:
    assert results.twins is not None
    plain, wide = results.twins.twins
    twins = dataclasses.replace(
        results.twins, twins=(plain, dataclasses.replace(wide, correct=correct))
    )
    assert told in sentence("twins", twins)


def test_the_engine_in_which_the_comparator_wins_is_named(results: Results) -> None:
    (group,) = results.latency
    assert table(results, f"Deploy form against others, {group.title}") == [
        ["Engine", "RepVGG, train form", "ResNet of equal size"],
        ["eager PyTorch", "2.05× (2.05 to 2.05)", "1.30× (1.30 to 1.30)"],
        ["ONNX Runtime", "1.38× (1.38 to 1.38)", "0.875× (0.87 to 0.87)"],
    ]
    told = [sentence("duel", duel) for duel in against_others(results, group)]
    assert "In eager PyTorch the deploy form is 1.30× faster than ResNet of equal size." in told
    assert "In ONNX Runtime the deploy form is 1.14× slower than ResNet of equal size." in told


def test_images_that_are_right_are_counted(results: Results) -> None:
    lines = table(results, "Images right")
    assert ["RepVGG, deploy form", "ONNX Runtime", "356", "360", "test images"] in lines
    assert ["ResNet of equal size", "eager", "355", "360", "test images"] in lines


def test_losses_are_drawn_epoch_by_epoch(results: Results) -> None:
    page = page_html(results)
    assert "Epoch 2: RepVGG, train form 0.400, ResNet of equal size 0.300" in page
    assert page.index('id="training"') > page.index('id="accuracy"')


def test_peaks_are_compared_with_the_deploy_form(results: Results) -> None:
    assert table(results, results.memory[0].title)[1:] == [
        ["Multi-branch, train form", "512 KiB", "4×", "2.00×"],
        ["Residual block", "384 KiB", "3×", "1.50×"],
        ["Single path", "256 KiB", "2×", "1.00×"],
    ]


def test_page_is_self_contained_and_small(results: Results, tmp_path: Path) -> None:
    page = render(results, tmp_path / "index.html")
    text = page.read_text(encoding="utf-8")
    assert len(text) < 200_000
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in text


def test_page_escapes_what_it_is_given(results: Results) -> None:
    hostile = dataclasses.replace(results, title="<script>alert(1)</script>")
    text = page_html(hostile)
    assert "<script>alert" not in text
    assert "alone &lt;it&gt; costs less" in text


class _Balance(HTMLParser):
    """Counts open elements that HTML does not close by itself."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - the name is the base class's
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_elements_are_balanced(results: Results) -> None:
    parser = _Balance()
    parser.feed(page_html(results))
    assert parser.open == []


def test_csv_link_holds_the_numbers_of_the_tables(results: Results) -> None:
    rows = numbers(results)
    assert rows[0] == ["section", "group", "subject", "quantity", "value", "unit"]
    subject = "RepVGG, deploy form, eager"
    assert ["latency", "Latency, The trained nets", subject, "Median", "2.0", "ms"] in rows
    region = ["plan", "Regions that fold", "stages.0.0"]
    assert [*region, "Stored numbers, before", "10432", "count"] in rows
    assert [*region, "Stored numbers, after", "9248", "count"] in rows
    reason = ["pool, average pooling", "Why", "alone <it> costs less", ""]
    assert ["plan", "Left as it is", *reason] in rows
    loss = ["training", "Training loss", "2", "RepVGG, train form", "0.4", ""]
    assert loss in rows


def test_a_name_is_no_formula_of_a_spreadsheet(results: Results) -> None:
    named = dataclasses.replace(results.models[0], label="=HYPERLINK(0)")
    rows = numbers(dataclasses.replace(results, models=(named, *results.models[1:])))
    assert not [cell for row in rows for cell in row if cell.startswith("=")]
    assert [cell for row in rows for cell in row if cell.startswith("'=HYPERLINK(0)")]


def test_results_survive_json(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(to_json(results), encoding="utf-8")
    assert load_results(path) == results
    assert load_results(json.loads(to_json(results))) == results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other/9"}, "found the schema 'other/9', needed 'reparam.results/2'"),
        ({"models": 3}, "results: models is 3; it must be a list"),
        ({"models": [{"key": "a"}]}, r"results: models\[0\]: found the keys key; needed 'label'"),
        (
            {"accuracy": [{"model": "train", "correct": 1.5, "total": 2}]},
            r"accuracy\[0\].correct is 1.5; it must be of type int",
        ),
        ({"accuracy": [{"model": "none", "correct": 1, "total": 2}]}, "speak of a model 'none'"),
        (
            {"training": [{"model": "train", "epochs": 1, "seconds": "x"}]},
            r"training\[0\].seconds is 'x'; it must be of type float",
        ),
    ],
    ids=["schema", "list", "missing", "whole", "reference", "number"],
)
def test_misfits_are_named_with_their_place(
    results: Results, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_results(json.loads(to_json(results)) | change)


def test_not_a_results_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_results(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is not JSON"):
        load_results(tmp_path / "broken.json")


def test_bars_start_at_zero_and_speak() -> None:
    row = Row("a", bar(5.0, interval=(4.0, 6.0)), "5.00 ms", role="train")
    chart = bar_chart([row], unit="ms", summary="One bar")
    assert chart.axis.ticks[0] == 0.0
    assert row.marks[0].start == 0
    assert chart.parts() == [([row], "One bar. a: 5.00 ms.")]


def test_drawing_of_a_block_follows_its_branches(results: Results) -> None:
    assert results.block is not None
    wide = BlockRecord(
        where="b",
        before=tuple(BranchRecord((f"conv {k}×{k}", "BN")) for k in (1, 3, 5, 7)),
        after=(BranchRecord(("conv 7×7",)),),
    )
    text = page_html(dataclasses.replace(results, block=wide))
    assert words(text).count("conv 7×7") == 2
    assert "b, train form: 4 parallel paths, summed: conv 1×1, BN; conv 3×3, BN" in text
    assert "b, deploy form: one path: conv 7×7." in text
