"""The page says what the results say, and nothing else."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from reparam.errors import InputError
from reparam.report import load_results, page_html, render, to_json
from reparam.report.charts import Bar, bar_chart
from reparam.report.engines import on_one_scale
from reparam.report.results import AgreementRecord, BlockRecord, BranchRecord, Results
from reparam.report.sentences import accuracy_remarks, headline, latency_remarks, memory_remarks
from reparam.report.twins import twins_remarks

if TYPE_CHECKING:
    from pathlib import Path


def sentence(results: Results) -> str:
    return "".join(phrase.text for phrase in headline(results))


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
    assert sentence(results) == (
        "22 convolutions became 11: the same predictions on all 360 test images, "
        "2.05× faster in eager PyTorch, 2.00× less peak activation memory in a block."
    )


def test_headline_hides_nothing(results: Results) -> None:
    worse = dataclasses.replace(
        flipped(results), agreement=(AgreementRecord("train", "deploy", 358, 360),)
    )
    assert sentence(worse) == (
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
    assert "2.25× faster in eager PyTorch" in sentence(shown)
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
    assert sentence(bare) == "Nothing yet"
    assert "Nothing yet" in page_html(bare)


def test_equal_speed_is_called_equal(results: Results) -> None:
    group = results.latency[0]
    rows = tuple(dataclasses.replace(row, samples_ms=(2.0, 2.01)) for row in group.rows)
    same = dataclasses.replace(results, latency=(dataclasses.replace(group, rows=rows),))
    assert "the same speed" in sentence(same)


def test_no_winner_is_named_that_did_not_win_most_rounds(results: Results) -> None:
    group = results.latency[0]
    noisy = {"train": (5.0, 5.0, 5.0, 1.0), "deploy": (4.0, 6.0, 2.0, 3.0)}
    rows = tuple(
        dataclasses.replace(row, samples_ms=noisy.get(row.model, row.samples_ms))
        for row in group.rows
    )
    unsure = dataclasses.replace(results, latency=(dataclasses.replace(group, rows=rows),))
    assert "no clear difference in speed" in sentence(unsure)
    remark = latency_remarks(unsure, unsure.latency[0])[0]
    assert remark.endswith("is clearly faster in this run.")


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
    assert told in twins_remarks(twins)[-1]


def test_remarks_name_the_engine_in_which_the_comparator_wins(results: Results) -> None:
    remarks = latency_remarks(results, results.latency[0])
    assert "In eager PyTorch the deploy form is 1.30× faster than ResNet of equal size." in remarks
    assert "In ONNX Runtime the deploy form is 1.14× slower than ResNet of equal size." in remarks
    assert accuracy_remarks(results)[0] == "Both forms get 356 of 360 images right."


def test_memory_remarks_compare_with_the_deploy_form(results: Results) -> None:
    remarks = memory_remarks(results, results.memory[0])
    assert "Single path: 2.00× less than Multi-branch, train form." in remarks
    assert "Single path: 1.50× less than Residual block." in remarks


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


def test_csv_link_holds_the_numbers(results: Results) -> None:
    text = page_html(results)
    start = text.index("data:text/csv;charset=utf-8,") + len("data:text/csv;charset=utf-8,")
    rows = list(csv.reader(io.StringIO(unquote(text[start : text.index('"', start)]))))
    assert rows[0] == ["section", "group", "subject", "quantity", "value", "unit"]
    assert [
        "latency",
        "The trained nets",
        "RepVGG, deploy form, eager",
        "median",
        "2.0",
        "ms",
    ] in rows
    assert ["refusals", "average pooling", "pool", "reason", "alone <it> costs less", ""] in rows


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
    chart = bar_chart(
        [Bar("a", "", "train", 5.0, 4.0, 6.0, "5.00 ms")], unit="ms", summary="One bar"
    )
    assert 'class="bar" style="left:0.00%' in chart
    assert 'aria-label="One bar. a: 5.00 ms."' in chart


def test_drawing_of_a_block_follows_its_branches(results: Results) -> None:
    assert results.block is not None
    wide = BlockRecord(
        where="b",
        before=tuple(BranchRecord((f"conv {k}×{k}", "BN")) for k in (1, 3, 5, 7)),
        after=(BranchRecord(("conv 7×7",)),),
    )
    text = page_html(dataclasses.replace(results, block=wide))
    assert "b, train form: 4 parallel paths, summed: conv 1×1, BN; conv 3×3, BN" in text
    assert "b, deploy form: one path: conv 7×7." in text
