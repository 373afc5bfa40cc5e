"""Accuracy against latency, and engines compared: computed from the stored rounds, nothing else."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from reparam.deploy.benchmarking import BenchmarkResult, Case, Measurement
from reparam.errors import InputError
from reparam.report import from_benchmark, load_results, merge, page_html, sentence
from reparam.report.benchmarks import model_details
from reparam.report.paired import paired
from reparam.report.published import REPARAMETERIZED_FAMILIES, published
from reparam.report.results import ModelRecord, Results
from reparam.report.scatter import Dot, Scatter
from reparam.report.tradeoff import pareto_front, tradeoffs

from .conftest import MILLISECONDS, measurement
from .reading import figures, headline, table

if TYPE_CHECKING:
    from pathlib import Path


def verdict(compared: Any, engine: str) -> str:
    return sentence("verdict", compared, engine)


def only_tradeoff(benchmark: BenchmarkResult) -> Any:
    (compared,) = tradeoffs(from_benchmark(benchmark))
    return compared


def retimed(benchmark: BenchmarkResult, model: str, engine: str, middle: float) -> BenchmarkResult:
    """The same benchmark with other times of one case."""
    case = Case(f"{model}, deploy form", engine)
    return dataclasses.replace(
        benchmark,
        measurements=tuple(
            measurement(case, middle) if m.case == case else m for m in benchmark.measurements
        ),
    )


def test_pairs_are_chosen_by_accuracy_alone(benchmark: BenchmarkResult) -> None:
    wanted = [("RepVGG-A0, deploy form", "ResNet-18, deploy form"),
              ("RepVGG-A2, deploy form", "ResNet-50, deploy form")]  # fmt: skip
    slow = retimed(benchmark, "repvgg_a0", "eager", 900.0)
    for each in (benchmark, slow):
        assert [(m.label, o.label) for m, o in only_tradeoff(each).pairs] == wanted


def test_each_family_meets_a_net_that_it_equals(benchmark: BenchmarkResult) -> None:
    # S1 (75.9) is less accurate than ResNet-50 (76.31), S4 (79.4) far more so than ResNet-18.
    added = {"mobileone_s1": 9.0, "mobileone_s4": 30.0, "timm:repvit_m0_9": 12.0}
    details = {f"{name}, deploy form": model_details(name, "deploy") for name in added}
    wide = dataclasses.replace(
        benchmark,
        measurements=benchmark.measurements
        + tuple(measurement(Case(f"{name}, deploy form"), time) for name, time in added.items()),
        settings=benchmark.settings | {"models": benchmark.settings["models"] | details},
    )
    met = [(d.mine.label.split(",")[0], d.other.label.split(",")[0])
           for d in only_tradeoff(wide).duels_in("eager")]  # fmt: skip
    assert met == [
        ("RepVGG-A0", "ResNet-18"),
        ("RepVGG-A2", "ResNet-50"),
        ("RepViT-M0.9", "ResNet-50"),
    ]


def test_longer_recipes_are_told_and_drawn_hollow(benchmark: BenchmarkResult) -> None:
    assert "mark open" not in page_html(from_benchmark(benchmark))
    case = measurement(Case("timm:repvit_m0_9"), 5.0)
    longer = dataclasses.replace(benchmark, measurements=(*benchmark.measurements, case))
    page = page_html(from_benchmark(longer))
    assert page.count('class="mark open"') == 1
    assert page.count("300 epochs, the authors&#39; recipe, distilled") >= 1


def test_verdicts_follow_the_ratios(benchmark: BenchmarkResult) -> None:
    compared = only_tradeoff(benchmark)
    assert verdict(compared, "eager") == (
        "In eager PyTorch re-parameterized nets, in 2 pairs, win 2. Half the latency at equal or "
        "better accuracy holds against ResNet-50 (RepVGG-A2 2.33×); not against ResNet-18 "
        "(nearest: RepVGG-A0 1.60×)."
    )
    assert verdict(compared, "ONNX Runtime") == (
        "In ONNX Runtime re-parameterized nets, in 2 pairs, win 1, lose 1. Half the "
        "latency at equal or better accuracy holds against none: ResNet-18 (nearest: RepVGG-A0 "
        "1.33×), ResNet-50 (nearest: RepVGG-A2 0.82×)."
    )


def test_verdicts_turn_with_the_times(benchmark: BenchmarkResult) -> None:
    compared = only_tradeoff(retimed(benchmark, "repvgg_a2", "eager", 70.0))
    assert "in 2 pairs, win 1, lose 1." in verdict(compared, "eager")
    assert "ResNet-50 (nearest: RepVGG-A2 0.50×)" in verdict(compared, "eager")
    level = only_tradeoff(retimed(benchmark, "repvgg_a0", "eager", 16.0))
    assert "are level in 1." in verdict(level, "eager")


def test_no_winner_without_most_rounds(benchmark: BenchmarkResult) -> None:
    noisy = Measurement(Case("repvgg_a0, deploy form", "eager"), ((0.01,), (0.03,)) * 5)
    unsure = dataclasses.replace(
        benchmark,
        measurements=tuple(noisy if m.case == noisy.case else m for m in benchmark.measurements),
    )
    told = verdict(only_tradeoff(unsure), "eager")
    assert "are level in 1." in told
    assert "holds against ResNet-18" not in told


def test_headline_and_figures_count_wins(benchmark: BenchmarkResult) -> None:
    results = from_benchmark(benchmark)
    assert headline(results) == (
        "At equal or better published accuracy, re-parameterized nets are clearly faster in 2 of 2 "
        "pairs in eager PyTorch and 1 of 2 in ONNX Runtime."
    )
    assert figures(results) == {
        "pairs won in eager PyTorch": ("2 of 2", "1.60× to 2.33× as fast"),
        "pairs won in ONNX Runtime": ("1 of 2", "0.82× to 1.33× as fast"),
    }


def test_the_front_is_what_nothing_beats(benchmark: BenchmarkResult) -> None:
    points = only_tradeoff(benchmark).points
    on_front = {e: [p.model.label.split(",")[0] for p in ps if p.front] for e, ps in points.items()}
    assert on_front == {
        "eager": ["RepVGG-A0", "RepVGG-A2"],
        "ONNX Runtime": ["RepVGG-A0", "ResNet-50", "RepVGG-A2"],
    }
    for engine_points in points.values():
        for point in engine_points:
            beaten = any(
                other.top1 >= point.top1 and other.latency.median < point.latency.median
                for other in engine_points
                if other is not point
            )
            assert point.front != beaten
    assert pareto_front([]) == ()


def test_published_accuracies_are_for_their_size_only(benchmark: BenchmarkResult) -> None:
    small = dataclasses.replace(benchmark, shapes=((3, 192, 192),))
    assert tradeoffs(from_benchmark(small)) == []
    assert 'id="tradeoff"' not in page_html(from_benchmark(small))


def test_a_plain_stored_benchmark_is_known_by_its_names() -> None:
    names = ("repvgg_a0", "torchvision:resnet18", "my_net")
    cases = [measurement(Case(name), 10.0 + i) for i, name in enumerate(names)]
    plain = BenchmarkResult(tuple(cases), shapes=((3, 224, 224),))
    results = load_results(json.loads(plain.to_json()))
    assert [m.label for m in results.models] == ["RepVGG-A0", "ResNet-18", "my_net"]
    assert [m.role for m in results.models] == ["deploy", "comparator", "deploy"]
    assert len(tradeoffs(results)) == 1
    assert "my_net" in page_html(results)


def test_forms_of_one_model_are_the_story(forms: BenchmarkResult) -> None:
    results = from_benchmark(forms)
    assert headline(results) == "44 convolutions became 22: 2.00× faster in eager PyTorch."
    assert table(results, f"Deploy over train form, {results.benchmarks[0].title}") == [
        ["Engine", "RepVGG-A0"],
        ["eager PyTorch", "2.00× (2.00 to 2.00)"],
    ]


def test_engines_are_told_by_their_times(benchmark: BenchmarkResult) -> None:
    results = from_benchmark(benchmark)
    assert table(results, f"Fastest engines, {results.benchmarks[0].title}")[1:] == [
        ["ONNX Runtime", "3 of 4", "1.67× to 2.00×"],
        ["eager PyTorch", "1 of 4", "–"],
    ]


def test_what_was_not_measured_and_a_busy_machine_are_told(benchmark: BenchmarkResult) -> None:
    busy = dataclasses.replace(benchmark, settings=benchmark.settings | {"load_before": 3.0})
    text = page_html(from_benchmark(busy))
    assert "in ncnn (an &lt;invented&gt; reason)" in text
    assert "The machine was busy when the run began (load 3.0 on 2 cores)" in text
    assert "The machine was busy" not in page_html(from_benchmark(benchmark))


def test_page_labels_accuracies_as_published(benchmark: BenchmarkResult) -> None:
    text = page_html(from_benchmark(benchmark))
    assert "Accuracies are published, not measured here: RepVGG, arXiv 2101.03697" in text
    assert "ImageNet top-1 in %, published" in text
    assert text.count('class="choice"') == 2


def blocks_of(*branches: int) -> dict[str, Any]:
    """A stored count of blocks, which belong to none of the models."""
    roles = {3: "train", 2: "comparator", 1: "deploy"}
    traces = [
        {
            "model": "", "label": f"{n} branches", "operators": ["conv", "add"],
            "live_bytes": [1024 * n, 1024], "peak_bytes": 1024 * n, "role": roles[n],
            "predicted_bytes": 1024 * n,
        }
        for n in branches
    ]  # fmt: skip
    shape = [1, 4, 8, 8]
    return {
        "title": "One block", "scope": "in a block", "input_shape": shape, "input_bytes": 1024,
        "traces": traces,
    }  # fmt: skip


def with_blocks(benchmark: BenchmarkResult, *branches: int) -> BenchmarkResult:
    settings = benchmark.settings | {"memory": [blocks_of(*branches)]}
    return dataclasses.replace(benchmark, settings=settings)


def test_blocks_are_drawn_with_their_prediction_and_change_no_headline(
    benchmark: BenchmarkResult,
) -> None:
    results = from_benchmark(with_blocks(benchmark, 3, 2, 1))
    assert headline(results) == headline(from_benchmark(benchmark))
    assert figures(results) == figures(from_benchmark(benchmark))
    page = page_html(results)
    assert "Peaks in units of the input: counted, and as the branches let expect" in page
    assert ["3 branches", "3.00 KiB", "3×", "3×", "3.00×"] in table(results, "One block")
    assert "Predicted" in page
    assert "role-comparator" in page


def test_blocks_survive_a_merge(benchmark: BenchmarkResult) -> None:
    one = from_benchmark(with_blocks(benchmark, 2, 1))
    merged = merge([one, one])
    assert [trace.model for record in merged.memory for trace in record.traces] == [""] * 4
    assert merged.role_of(merged.memory[1].traces[0]) == "comparator"


def test_a_misfit_in_a_count_of_blocks_is_named(benchmark: BenchmarkResult) -> None:
    spoilt = with_blocks(benchmark, 1)
    del spoilt.settings["memory"][0]["traces"][0]["label"]
    with pytest.raises(InputError, match=r"memory: traces\[0\].*needed 'label' too"):
        from_benchmark(spoilt)


def test_files_of_both_kinds_share_a_page(
    results: Results, benchmark: BenchmarkResult, tmp_path: Path
) -> None:
    benchmark.save(tmp_path / "bench.json")
    both = merge([results, load_results(tmp_path / "bench.json")])
    assert headline(both) == headline(results)
    assert len({model.key for model in both.models}) == len(both.models) == 3 + len(MILLISECONDS)
    assert both.environment["torch"] == "2.14.1"
    assert both.environment["cpu"] == "– / an invented CPU"
    text = page_html(both)
    assert 'id="tradeoff"' in text
    assert 'id="memory"' in text
    swapped = merge([load_results(tmp_path / "bench.json"), results])
    assert headline(swapped) == headline(results)


def test_the_same_file_twice_keeps_the_runs_apart(benchmark: BenchmarkResult) -> None:
    results = from_benchmark(benchmark)
    both = merge([results, results])
    assert len(tradeoffs(both)) == 2
    assert page_html(both).count('name="engine-2"') == 2
    with pytest.raises(InputError, match="no results were given"):
        merge([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measurements": 3}, "results: this is not a stored benchmark"),
        (
            {"settings": {"models": {"repvgg_a0, deploy form": {"label": 3}}}},
            "label is 3; it must be of type str",
        ),
    ],
    ids=["measurements", "label"],
)
def test_misfits_are_named(
    benchmark: BenchmarkResult, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_results(json.loads(benchmark.to_json()) | change)


def test_published_table_is_the_papers() -> None:
    known = {"repvgg_a0": 72.41, "torchvision:resnet18": 71.16, "timm:resnet50": 76.31}
    for name, top1 in known.items():
        entry = published(name)
        assert entry is not None
        assert entry.top1 == top1
        assert "arXiv" in entry.source
    assert published("timm:resnet18.a1_in1k") is None
    assert published("mine:resnet50") is None
    assert "ResNet" not in REPARAMETERIZED_FAMILIES


def test_ratio_is_paired_not_of_medians() -> None:
    # A machine that slows down halfway: the medians are equal, every round says twice as fast.
    found = paired([2.0, 2.0, 8.0], [1.0, 1.0, 4.0])
    assert (found.factor, found.wins, found.won) == (2.0, True, 1.0)


def test_names_of_near_points_do_not_cover_one_another() -> None:
    marks = [
        Dot("", f"name {i}", "deploy", 10.0 + 0.2 * i, 9.0, 11.0, 75.0, ("fact",), strong=False)
        for i in range(3)
    ]
    assert len(set(Scatter(marks, x_title="x", y_title="y", summary="s").sides())) == 3


def test_a_model_record_without_counts_is_drawn() -> None:
    bare = Results("Bare", "", models=(ModelRecord("a", "A", "deploy"),))
    assert "–" in page_html(bare)
