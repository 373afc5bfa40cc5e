"""The benchmark measures what it was asked for, in interleaved rounds, and stores all of it.

No test asserts a time: what is checked is which calls are made, in which order, and the statistics.
"""

from __future__ import annotations

import json

import pytest
import torch

import reparam.deploy.benchmarking as bench
from deploying import fold, network, real_inputs
from reparam.deploy.benchmarking import BenchmarkResult, Case, Measurement, benchmark
from reparam.errors import InputError, TrainingModeError

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    net = network()
    return {"train": net, "deploy": fold(net)}


@pytest.fixture(scope="module")
def result(both):
    return benchmark(
        {"deploy": both["deploy"]},
        real_inputs(),
        engines=("eager", "onnxruntime", "openvino"),
        precisions=("fp32", "bf16"),
        threads=(1,),
        rounds=3,
        warmup=1,
    )


def test_every_combination_is_measured_or_says_why_not(result):
    measured = {(m.case.model, m.case.engine, m.case.precision) for m in result.measurements}
    skipped = {(s.case.model, s.case.engine, s.case.precision) for s in result.skipped}
    assert skipped == {("deploy", "onnxruntime", "bf16")}
    assert all("bf16" in s.why for s in result.skipped)
    assert len(measured | skipped) == 3 * 2
    assert all(len(m.samples) == 3 for m in result.measurements)


def test_json_round_trip_keeps_every_sample(result, tmp_path):
    path = tmp_path / "bench.json"
    result.save(path)
    assert BenchmarkResult.load(path) == result
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def test_record_names_the_processor_and_versions_but_not_the_machine(result):
    import platform
    from pathlib import Path

    text = result.to_json()
    assert result.environment["cores"] >= 1
    assert result.environment["cpu"]
    assert {"torch", "onnxruntime", "openvino", "reparam", "python"} <= set(
        result.environment["versions"]
    )
    assert json.dumps(str(Path.cwd())) not in text
    if len(platform.node()) > 3:
        assert platform.node() not in text
    assert result.shapes == ((3, 16, 16),)


def test_turns_are_interleaved_and_their_order_changes():
    calls = []
    functions = {name: (lambda _, name=name: calls.append(name)) for name in "abcd"}
    found = benchmark(functions, torch.zeros(1), rounds=8, warmup=0)
    assert [m.case.engine for m in found.measurements] == ["function"] * 4
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    # A turn is a run of equal names; whatever borders two rounds may join two turns into one.
    assert len(turns) > 4 * 8 - 8
    assert len({tuple(turns[i : i + 4]) for i in range(4, len(turns) - 4, 4)}) > 1


def test_same_seed_same_order_other_seed_other_order():
    def order(seed):
        calls = []
        functions = {
            name: (lambda _, name=name: None if calls[-1:] == [name] else calls.append(name))
            for name in "abcdef"
        }
        benchmark(functions, torch.zeros(1), rounds=4, warmup=0, seed=seed)
        return calls

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_ratio_is_taken_round_by_round():
    slow = Measurement(Case("slow"), ((4.0, 4.0), (40.0, 40.0), (8.0, 8.0)))
    fast = Measurement(Case("fast"), ((2.0, 2.0), (10.0, 10.0), (4.0, 4.0)))
    found = BenchmarkResult((slow, fast)).ratio("slow", "fast")
    assert found.values == (2.0, 4.0, 2.0)
    assert found.median == 2.0
    assert (found.quartiles.q1, found.quartiles.q3) == (2.0, 3.0)


def test_a_round_counts_by_the_median_of_its_calls():
    entry = Measurement(Case("a", batch=8), ((1.0, 1.0, 100.0), (3.0,)))
    assert entry.rounds == (1.0, 3.0)
    assert entry.latency.median == 2.0
    assert entry.throughput == 4.0


def test_fastest_is_by_time_per_sample():
    one = Measurement(Case("net", "a", batch=1), ((1.0,),))
    four = Measurement(Case("net", "b", batch=4), ((2.0,),))
    other = Measurement(Case("other", "a"), ((0.1,),))
    found = BenchmarkResult((one, four, other))
    assert found.fastest("net") is four
    assert found.fastest() is other
    with pytest.raises(InputError, match="measured models: net, other"):
        found.fastest("missing")


def test_lookup_that_fits_several_says_which():
    found = BenchmarkResult(
        (Measurement(Case("net", "a"), ((1.0,),)), Measurement(Case("net", "b"), ((1.0,),)))
    )
    assert found["net", "b"].case.engine == "b"
    with pytest.raises(KeyError, match="fits 2 measurements"):
        _ = found["net"]


def test_batches_and_threads_reach_the_model():
    seen = set()
    before = torch.get_num_threads()
    function = {"f": lambda x: seen.add((len(x), torch.get_num_threads()))}
    benchmark(function, torch.zeros(3, 2), batches=(1, 5), threads=(1, 2), rounds=1)
    assert seen == {(1, 1), (1, 2), (5, 1), (5, 2)}
    assert torch.get_num_threads() == before


def test_functions_run_without_gradients():
    modes = set()
    benchmark(
        {"f": lambda _: modes.add(torch.is_inference_mode_enabled())}, torch.zeros(1), rounds=1
    )
    assert modes == {True}


def test_progress_counts_up_to_its_total(both):
    steps = []
    benchmark(both, real_inputs(), rounds=2, progress=lambda *step: steps.append(step))
    done, totals, texts = zip(*steps, strict=True)
    assert done == tuple(range(2 * (1 + 2)))
    assert set(totals) == {len(steps)}
    assert texts[0].startswith("preparing train")


def test_models_are_not_changed(both):
    state = {k: v.clone() for k, v in both["train"].state_dict().items()}
    benchmark(both, real_inputs(), precisions=("bf16",), rounds=1)
    found = both["train"].state_dict()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state.items())


def test_rounds_end_with_the_time_but_for_the_first():
    functions = {"f": lambda _: None, "g": lambda _: None}
    found = benchmark(functions, torch.zeros(1), rounds=100, seconds=1e-9)
    assert found.settings["rounds"] == 1
    assert [len(m.samples) for m in found.measurements] == [1]
    assert [skipped.case.model for skipped in found.skipped] == ["g"]


def test_a_model_that_takes_all_the_time_is_called_no_more_than_it_must_be():
    calls = []
    benchmark({"f": calls.append}, torch.zeros(1), rounds=100, warmup=1000, seconds=1e-9)
    assert len(calls) < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "no model to measure"),
        (
            {"engines": ("onnxrt",)},
            r"is called 'onnxrt'; known engines: eager.*onnxrun",
        ),
        ({"precisions": ("fp8",)}, "precision is 'fp8'; known precisions: fp32, bf16"),
        ({"threads": (0,)}, "threads is 0"),
        ({"batches": (0,)}, r"batches is \[0\]"),
        ({"rounds": 0}, "rounds is 0"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"engines": ()}, "at least one entry"),
        ({"models": {"net": "missing.onnx"}}, "no file 'missing.onnx'"),
        ({"models": {"net": 3}}, "'net' is a int"),
        ({"engines": ("onnxruntime",), "precisions": ("bf16",)}, "nothing that was asked for"),
    ],
)
def test_wrong_arguments_say_what_is_needed(both, arguments, message):
    with pytest.raises(InputError, match=message):
        benchmark(**{"models": both, "example_inputs": real_inputs(), "rounds": 1} | arguments)


def test_training_mode_is_an_error():
    with pytest.raises(TrainingModeError, match="measuring 'train'"):
        benchmark({"train": network().train()}, real_inputs(), rounds=1)


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"schema": "other"}'])
def test_foreign_json_is_an_error(text):
    with pytest.raises(InputError, match=r"schema|stored benchmark"):
        BenchmarkResult.from_json(text)


def test_table_for_a_person(result):
    lines = str(result).splitlines()
    assert lines[0].split()[:3] == ["case", "median", "ms"]
    assert sum(line.startswith("not measured:") for line in lines) == 1


def test_package_exports_what_it_says():
    assert all(hasattr(bench, name) for name in bench.__all__)
