"""Eight bits and pruning on the page: the numbers of real small runs, and nothing hidden."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

import pytest

from reparam.errors import InputError
from reparam.lab.pruning.result import LayerWidths, Trial
from reparam.lab.quantizing.diagnosing import LayerDiagnosis
from reparam.report import (
    from_benchmark,
    from_prune,
    from_quantize,
    load_results,
    merge,
    page_html,
    render,
    sentence,
    to_json,
)
from reparam.report.pruned import target_met

from . import compressed_cases as cases
from .reading import figures, further, headline, numbers, table, words

if TYPE_CHECKING:
    from pathlib import Path

    from reparam.deploy.benchmarking import BenchmarkResult
    from reparam.lab.pruning import PruneResult
    from reparam.lab.quantizing import QuantizeResult
    from reparam.report.results import Results

for _package in ("onnxruntime", "onnxscript", "torch_pruning"):
    pytest.importorskip(_package)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    return cases.quantized(tmp_path_factory.mktemp("int8"), equalize=True, keep_float=1)


@pytest.fixture(scope="module")
def pruned() -> PruneResult:
    return cases.pruned()


def test_quantize_results_are_put_on_record(quantized: QuantizeResult) -> None:
    (record,) = from_quantize(quantized, model="A net").quantizations
    score = quantized.score
    assert record.samples == score.samples == 96
    assert record.correct / 96 == pytest.approx(score.accuracy, abs=1e-12)
    assert record.correct_float / 96 == pytest.approx(score.float_accuracy, abs=1e-12)
    assert record.agree / 96 == pytest.approx(score.agreement, abs=1e-12)
    assert record.layers == quantized.diagnosis.layers
    assert record.kept_float == quantized.kept_float
    assert len(record.equalised) == len(quantized.equalised) > 0
    assert record.model == "A net"
    assert from_quantize(quantized).quantizations[0].model.endswith("RepVGG")


def test_prune_results_are_put_on_record(pruned: PruneResult) -> None:
    results = from_prune(pruned, model="A net", judged=(60, 40, 96), judged_on="made-up images")
    (record,) = results.prunings
    assert record.macs_share == 0.5
    assert (record.multiply_adds_before, record.multiply_adds_after) == pruned.multiply_adds
    assert record.layers == pruned.layers
    assert (record.correct_before, record.correct_after, record.samples) == (60, 40, 96)
    assert record.groups == ()
    assert target_met(record) is True


@pytest.mark.parametrize("judged", [(97, 1, 96), (1, 97, 96)])
def test_more_right_than_there_are_is_refused(
    pruned: PruneResult, judged: tuple[int, int, int]
) -> None:
    with pytest.raises(InputError, match="which cannot be fewer"):
        from_prune(pruned, judged=judged)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ({"macs": 0.5}, {"macs_share": 0.5}),
        ({"macs": None, "latency": "1s", "engine": "eager", "rounds": 1}, {"latency_ms": 1000.0}),
        ({"macs": None, "latency": 0.99, "engine": "eager", "rounds": 1}, {"latency_share": 0.99}),
    ],
)
def test_the_target_is_known_as_a_number(
    target: dict[str, object], found: dict[str, float]
) -> None:
    # Whether a latency is reached depends on the machine; how it is worded does not.
    try:
        result = cases.pruned(**target)
    except InputError as error:
        pytest.skip(f"this machine cannot: {error}")
    (record,) = from_prune(result).prunings
    names = ("macs_share", "latency_share", "latency_ms")
    assert {n: v for n in names if (v := getattr(record, n)) is not None} == found


def test_a_result_itself_is_sent_to_what_puts_it_on_record(
    quantized: QuantizeResult, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"found a QuantizeResult, needed Results .*from_quantize"):
        render(quantized, tmp_path / "page.html")
    page = render(from_quantize(quantized), tmp_path / "page.html")
    assert "Eight bits" in page.read_text(encoding="utf-8")


def test_records_survive_json(
    quantized: QuantizeResult, pruned: PruneResult, tmp_path: Path
) -> None:
    both = merge([from_quantize(quantized), from_prune(pruned, judged=(60, 40, 96))])
    path = tmp_path / "both.json"
    path.write_text(to_json(both), encoding="utf-8")
    assert load_results(path) == both
    assert both.quantizations
    assert both.prunings


def test_files_from_before_eight_bits_still_load(results: Results) -> None:
    old = json.loads(to_json(results))
    del old["quantizations"], old["prunings"]
    assert load_results(old) == results


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("quantizations", {"samples": "many"}, r"quantizations\[0\].samples is .*of type int"),
        ("quantizations", {"layers": 3}, r"quantizations\[0\].layers is 3; .*a list"),
        ("quantizations", {"samples": 0}, "judged on 0 samples"),
        ("quantizations", {"correct": 501}, "501 of 500 samples"),
        ("quantizations", {"size_bytes": 0}, "0 bytes"),
        ("prunings", {"macs_share": "half"}, r"prunings\[0\].macs_share is .*of type float"),
        ("prunings", {"layers": []}, "no layers"),
        ("prunings", {"multiply_adds_before": 0}, "0 multiply-adds"),
        ("prunings", {"samples": None}, "of no samples"),
    ],
)
def test_misfits_are_refused_before_a_page_is_drawn(
    section: str, change: dict[str, object], message: str
) -> None:
    both = merge([cases.quantization_page(), cases.pruning_page()])
    value = json.loads(to_json(both))
    value[section][0] |= change
    with pytest.raises(InputError, match=message):
        load_results(value)


def test_the_page_of_a_real_quantization_has_its_numbers(quantized: QuantizeResult) -> None:
    page = words(page_html(from_quantize(quantized, model="A net")))
    for layer in quantized.diagnosis.layers:
        assert f"{layer.output_db:.1f} dB" in page
        assert f"{layer.weight_low:.2f} to {layer.weight_high:.2f}" in page
    score = quantized.score
    assert f"{100 * score.accuracy:.1f} %" in page
    assert f"{score.output_db:.1f} dB" in page
    assert f"Left in float: {quantized.kept_float[0]}." in page
    assert f"{quantized.equalised[0].spread_after:.2f}×" in page
    assert "A net in ONNX Runtime" in page


def test_the_page_of_a_real_pruning_has_its_numbers(pruned: PruneResult) -> None:
    page = words(page_html(from_prune(pruned, model="A net", judged=(60, 40, 96))))
    for layer in pruned.layers:
        assert layer.name in page
        if layer.before[1] != layer.after[1]:
            assert f"{layer.before[1]} → {layer.after[1]}" in page
    share = pruned.multiply_adds[1] / pruned.multiply_adds[0]
    assert f"Asked for: 0.5 of the multiply-adds. {share:.3f} are left: the target is met." in page
    assert "62.5 % → 41.7 % 20.83" in page
    assert "what that cost before any training on" in page
    assert "nothing is added on a single path" in page
    assert "Latency was not measured" in page


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {},
            (
                "In eight bits 78.0 % of 500 samples are right, 2.00 points less than in float, in "
                "a file 4.00× smaller than the float weights."
            ),
        ),
        (
            {"correct": 401, "size_bytes": 5_000_000},
            (
                "In eight bits 80.2 % of 500 samples are right, 0.20 points more than in float, in "
                "a file 1.25× larger than the float weights."
            ),
        ),
        (
            {"correct": 400},
            (
                "In eight bits 80.0 % of 500 samples are right, as many as in float, in a file "
                "4.00× smaller than the float weights."
            ),
        ),
        (
            {"correct": None, "correct_float": None, "size_bytes": 4_000_000},
            (
                "In eight bits 94.0 % of 500 samples get the class that they get in float, in a "
                "file as large as the float weights."
            ),
        ),
        (
            {"correct": None, "correct_float": None, "agree": None},
            (
                "In eight bits the output stands 28.0 dB above the rounding noise, in a file "
                "4.00× smaller than the float weights."
            ),
        ),
    ],
    ids=["lost", "gained", "equal", "no classes", "no classification"],
)
def test_headline_of_eight_bits(changes: dict[str, object], told: str) -> None:
    results = cases.quantization_page(**changes)
    assert headline(results) == told
    page_html(results)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {},
            ("Pruning leaves 0.60 of the latency in ONNX Runtime and 0.40 of the multiply-adds and "
            "costs 10.00 points of accuracy on 500 images, before any training on; the target was "
            "missed."),
        ),
        (
            {"latency": None, "latency_share": None, "macs_share": 0.4, "samples": None,
             "correct_before": None, "correct_after": None},
            "Pruning leaves 0.40 of the multiply-adds; what that costs in accuracy was not judged.",
        ),
        (
            {"latency_share": 0.7, "correct_after": 401},
            ("Pruning leaves 0.60 of the latency in ONNX Runtime and 0.40 of the multiply-adds, "
            "with 0.20 points of accuracy on 500 images gained."),
        ),
        (
            {"latency_share": None, "macs_share": 0.3, "correct_after": 400},
            ("Pruning leaves 0.40 of the multiply-adds and 0.60 of the latency in ONNX Runtime; as "
            "many of 500 images are right as before; the target was missed."),
        ),
    ],
    ids=["missed", "not judged", "gained", "equal"],
)  # fmt: skip
def test_headline_of_pruning(changes: dict[str, object], told: str) -> None:
    results = cases.pruning_page(**changes)
    assert headline(results) == told
    page_html(results)


def test_latency_that_did_not_follow_is_said() -> None:
    less = words(page_html(cases.pruning_page()))
    assert "fell less than the multiply-adds: 0.60 against 0.40 of before" in less
    unclear = dataclasses.replace(cases.PRUNING.latency, ratio=0.99, quartiles=(0.9, 1.1))
    results = cases.pruning_page(latency=unclear)
    assert "the latency in ONNX Runtime about as it was" in headline(results)
    assert "neither net is clearly faster" in words(page_html(results))


def test_the_price_of_additions_is_shown() -> None:
    page = words(page_html(cases.pruning_page()))
    assert "2 of 3 layers write channels that others write too" in page
    assert "The price of additions" in page
    assert "it <writes> the outputs of the net" in page


def test_advice_names_what_was_not_tried() -> None:
    assert sentence("advice", cases.QUANTIZATION) == (
        "2.00 points were lost; try --equalize, which changes nothing in float; --keep-float 2, "
        "which leaves the two worst layers in float"
    )
    little = dataclasses.replace(cases.QUANTIZATION, correct=399)
    assert sentence("advice", little) == ""
    assert "2.00 points were lost; try --equalize" in words(page_html(cases.quantization_page()))


def test_figures_are_computed(quantized: QuantizeResult) -> None:
    told = figures(cases.quantization_page())
    assert told["right in OpenVINO"] == ("78.0 %", "80.0 % in float, 2.00 points lost")
    assert told["same class as in float"] == ("470 / 500", "30 changed class")
    assert told["smaller than in float"][0] == "4.00×"
    told = figures(cases.pruning_page())
    assert told["of the multiply-adds"] == ("0.40", "1.00 M → 400 k")
    assert told["of the latency in ONNX Runtime"] == ("0.60", "2.00 ms → 1.20 ms")
    assert told["right, not trained on yet"] == ("70.0 %", "80.0 % before, 10.00 points lost")
    assert next(iter(figures(from_quantize(quantized)))) == "right in ONNX Runtime"


def test_several_of_a_kind_stand_in_a_table() -> None:
    better = cases.quantization_page(model="Another net", correct=405)
    joined = merge([cases.quantization_page(), better, cases.pruning_page(), cases.pruning_page()])
    assert headline(joined) == (
        "In eight bits, 2 files in OpenVINO: 1.00 points gained to 2.00 points lost."
    )
    assert further(joined) == [
        (
            "Pruning leaves 0.40 of the multiply-adds of 2 nets; accuracy: 10.00 points lost, "
            "before any training on; not every target was met."
        )
    ]
    assert [line[3] for line in table(joined, "Nets in eight bits")[1:]] == [
        "390 (78.0 %)",
        "405 (81.0 %)",
    ]
    assert [line[1] for line in table(joined, "Pruned nets")[1:]] == ["1.00 M → 400 k (0.40)"] * 2


def test_pages_of_different_kinds_merge(
    benchmark: BenchmarkResult, results: Results, quantized: QuantizeResult, pruned: PruneResult
) -> None:
    parts = [from_quantize(quantized), from_prune(pruned), from_benchmark(benchmark)]
    joined = merge(parts)
    assert headline(joined).startswith("At equal or better published accuracy")
    assert len(further(joined)) == 2
    assert joined.title == " · ".join(part.title for part in parts)
    page = page_html(joined)
    assert re.findall(r'<section class="part" id="(\w+)"', page) == [
        "tradeoff", "engines", "int8", "pruning", "models", "environment",
    ]  # fmt: skip
    # Whatever comes first, the two forms of a demo are told of as they are alone.
    assert headline(merge([*parts[:2], results])) == headline(results)


def test_a_page_without_eight_bits_has_no_such_section(results: Results) -> None:
    page = page_html(results)
    assert 'id="int8"' not in page
    assert 'id="pruning"' not in page
    assert [told for told in further(results) if not told.startswith("Trained on")] == []


def test_csv_has_the_layers(quantized: QuantizeResult, pruned: PruneResult) -> None:
    rows = numbers(merge([from_quantize(quantized, model="Q"), from_prune(pruned, model="P")]))
    layer, group = quantized.diagnosis.layers[0], "Layers of Q in ONNX Runtime"
    assert ["int8", group, layer.name, "Output dB", str(layer.output_db), "dB"] in rows
    name, width = pruned.layers[0].name, pruned.layers[0].after[1]
    assert ["pruning", "Channels of P", name, "Out, after", str(width), "channels"] in rows


def test_long_charts_unfold() -> None:
    layers = tuple(LayerWidths(f"l{i}", "conv", (64, 64), (32, 32)) for i in range(50))
    page = page_html(cases.pruning_page(layers=layers, groups=()))
    assert "10 more layers" in page
    assert "l49: 64 to 32" in page


def test_no_error_at_all_is_drawn_at_the_end() -> None:
    exact = LayerDiagnosis("exact", "conv", -1, 1, 1, 0, 1, 1, 200.0, 200.0, 200.0)
    page = page_html(cases.quantization_page(layers=(exact,)))
    assert '<span class="dotmark disc" style="left:100.00%">' in page
    assert "exact: no error" in page


def test_files_of_the_first_schema_still_load() -> None:
    today = cases.pruning_page(trials=(Trial(0, 500_000, cases.PRUNING.latency),))
    earlier = json.loads(to_json(today)) | {"schema": "reparam.results/1"}
    (net,) = earlier["prunings"]
    net["layers"] = [
        {"name": layer["name"], "what": layer["what"]}
        | {
            f"{side}_{when}": layer[when][i]
            for i, side in enumerate(("inputs", "outputs"))
            for when in ("before", "after")
        }
        for layer in net["layers"]
    ]
    for timed in (net, net["trials"][0]):
        now = timed["latency"]
        timed["latency"] = {
            "engine": "ONNX Runtime", "batch": 1, "threads": 1, "ratio": now["ratio"],
            "before_ms": 2.0, "after_ms": 1.2, "low": 0.55, "high": 0.65,
        }  # fmt: skip
    net["trials"][0].pop("steps")
    assert page_html(load_results(earlier)) == page_html(today)
    net["layers"] = [3]
    with pytest.raises(InputError, match="written by another tool"):
        load_results(earlier)
