"""bench: what is measured, what is told of it, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from reparam.cli.bench.measuring import at_published_size
from reparam.cli.bench.picking import Picked, tell_picked
from reparam.cli.bench.request import FIGURE1_MODELS
from reparam.cli.options import Inputs, Target
from reparam.cli.terminal import Terminal
from reparam.deploy.benchmarking import BenchmarkResult, Case, Measurement, ParityRow, Pick
from reparam.deploy.engines.parity import Parity
from reparam.report import load_results
from reparam.report.published import REPARAMETERIZED_FAMILIES, published

pytest.importorskip("typer")
pytest.importorskip("rich")

FAST = ("--engines", "eager", "--rounds", "2", "--threads", "1", "--size", "8")


def test_both_forms_are_timed_and_told(reparam_command, tiny: str) -> None:
    ran = reparam_command("bench", f"{tiny}:net", *FAST)
    assert ran.code == 0, ran.err
    assert "One image of 8×8 pixels a call, 1 thread: ms, medians of 2 rounds" in ran.out
    assert f"{tiny}:net, train form" in ran.out
    assert f"{tiny}:net: deploy over train" in ran.out
    assert "Next: add -o results.json" in ran.out


def test_results_hold_samples_counts_and_the_command(reparam_command, tiny: str) -> None:
    ran = reparam_command(
        "bench", f"{tiny}:net", f"{tiny}:other", *FAST, "--batches", "1,2", "-o", "r.json"
    )
    assert ran.code == 0, ran.err
    assert "Next: reparam report r.json -o r.html" in ran.out
    stored = BenchmarkResult.load("r.json")
    assert len(stored.measurements) == 2 * 2 * 2
    models = stored.settings["models"]
    deploy, train = (models[f"{tiny}:net, {form} form"] for form in ("deploy", "train"))
    assert (train["convolutions"], train["norms"]) == (6, 8)
    assert (deploy["convolutions"], deploy["norms"]) == (3, 0)
    assert 0 < deploy["parameters"] < train["parameters"]
    assert 0 < deploy["multiply_adds"] < train["multiply_adds"]
    assert 0 < deploy["bytes_moved"] < train["bytes_moved"]
    assert stored.settings["command"] == (
        f"reparam bench {tiny}:net {tiny}:other --forms train,deploy --engines eager "
        "--precisions fp32 --batches 1,2 --threads 1 --input-size 8 --rounds 2"
    )
    assert str(Path.cwd()) not in Path("r.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(("suffix", "engine"), [(".pt2", "eager"), (".xml", "openvino")])
def test_a_file_of_fixed_shape_is_timed_and_compared_at_it(
    reparam_command, tiny: str, suffix: str, engine: str
) -> None:
    file = f"net{suffix}"
    assert (
        reparam_command("fuse", f"{tiny}:net", "--size", "16", "--fixed-shapes", "-o", file).code
        == 0
    )
    timed = ("bench", file, "--engines", engine, "--rounds", "1", "--threads", "1")
    ran = reparam_command(*timed)
    assert ran.code == 0, ran.err
    assert "16×16 pixels" in ran.out
    ran = reparam_command("verify", f"{tiny}:net", file)
    assert ran.code == 0, ran.err
    refused = reparam_command(*timed, "--size", "8")
    assert refused.code == 2
    assert "1,3,16,16" in refused.err


def test_a_net_with_nothing_to_fold_has_one_form(reparam_command, tiny: str) -> None:
    ran = reparam_command("bench", f"{tiny}:plain", *FAST[:-2], "--shape", "1,4", "--json")
    assert [row["model"] for row in ran.json["groups"][0]["latency_ms"]] == [f"{tiny}:plain"]
    assert ran.json["groups"][0]["ratios"] == []


def test_json_is_the_summary(reparam_command, tiny: str) -> None:
    ran = reparam_command("bench", f"{tiny}:net", *FAST, "--json")
    (group,) = ran.json["groups"]
    assert group["input_shape"] == [1, 3, 8, 8]
    (ratio,) = group["ratios"]
    assert ratio["low"] <= ratio["factor"] <= ratio["high"]
    assert (ratio["faster"], ratio["than"]) == (
        f"{tiny}:net, deploy form",
        f"{tiny}:net, train form",
    )


def test_what_an_engine_cannot_do_is_told(reparam_command, tiny: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    line = ("bench", f"{tiny}:net", "--size", "8", "--rounds", "1", "--forms", "deploy")
    ran = reparam_command(*line, "--engines", "eager,onnxruntime", "--precisions", "bf16")
    assert ran.code == 0, ran.err
    assert "Not measured" in ran.out
    assert "does not run in bf16" in ran.out


def test_an_exported_file_is_measured_in_the_engine_that_reads_it(
    reparam_command, tiny: str
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    line = ("fuse", f"{tiny}:net", "-o", "net.onnx", "--size", "8")
    assert reparam_command(*line).code == 0
    ran = reparam_command("bench", "net.onnx", "--engines", "onnxruntime", "--rounds", "2",
                          "--size", "8", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["groups"][0]["latency_ms"][0]["engine"] == "ONNX Runtime"


def test_pick_names_the_fastest_and_writes_what_it_reads(reparam_command, tiny: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    line = ("bench", f"{tiny}:net", "--size", "8", "--rounds", "2", "--engines", "onnxruntime")
    ran = reparam_command(*line, "--pick", "-o", "picked")
    assert ran.code == 0, ran.err
    assert "ONNX Runtime is the fastest of those that agree" in ran.out
    assert Path("picked.onnx").is_file()
    assert f"Next: reparam verify {tiny}:net picked.onnx --input-size 8" in ran.out
    assert reparam_command("verify", f"{tiny}:net", "picked.onnx", "--size", "8").code == 0
    told = reparam_command(*line, "--pick", "--json").json
    assert told["fastest"] == {"engine": "onnxruntime", "precision": "fp32"}
    assert told["export"] is None
    assert told["form"] in {"train", "deploy"}
    assert set(told["train_over_deploy"]) == {"ONNX Runtime"}


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ((1.0, 1.1, 1.2), "the fused net is slower here, 0.55 times as fast"),
        ((4.0, 4.4, 4.8), "the fused net is 2.20 times as fast as the train form"),
        ((1.0, 2.2, 4.0), "fusing changes nothing that can be told from noise"),
    ],
)
def test_pick_says_where_the_fused_net_is_slower(train, words: str, capsys) -> None:
    def measured(form: str, times: tuple[float, ...]) -> Measurement:
        return Measurement(Case(form, "eager"), tuple((t,) for t in times))

    agrees = Parity(0.0, 0.0, 0.0, 1e-6, 1.0, 4, ok=True)
    both = (measured("model", (2.0, 2.0, 2.0)), measured("train", train))
    rows = tuple(ParityRow(m.case.model, "eager", "fp32", agrees) for m in both)
    result = BenchmarkResult(both)
    found = Pick(result.fastest(), rows, result, ".pt2", None)
    tell_picked(Terminal(), Picked(Target(name="net"), Inputs(), found, None))
    assert words in " ".join(capsys.readouterr().out.split())


def test_figure1_writes_results_and_page(reparam_command, tiny: str) -> None:
    pytest.importorskip("jinja2")
    ran = reparam_command(
        "bench", f"{tiny}:net", "--figure1", *FAST, "--seconds", "1", "-o", "figure.json"
    )
    assert ran.code == 0, ran.err
    assert load_results("figure.json").title.startswith("Accuracy against latency")
    assert "Accuracy against latency" in Path("figure.html").read_text(encoding="utf-8")
    models = json.loads(Path("figure.json").read_text(encoding="utf-8"))["settings"]["models"]
    assert list(models) == [f"{tiny}:net, deploy form"]


def test_figure1_counts_as_many_maps_as_branches(reparam_command, tiny: str) -> None:
    line = ("bench", f"{tiny}:net", "--figure1", *FAST, "--seconds", "1", "-o", "figure.json")
    assert reparam_command(*line).code == 0
    held, eager = load_results("figure.json").memory
    assert [t.peak_bytes / held.input_bytes for t in held.traces] == [3, 2, 1]
    assert [t.peak_bytes for t in held.traces] == [t.predicted_bytes for t in held.traces]
    # In eager PyTorch the caller holds the block's input until it returns: one map more.
    assert [t.peak_bytes / eager.input_bytes for t in eager.traces] == [4, 3, 3]
    assert {t.predicted_bytes for t in eager.traces} == {None}


def test_a_net_is_timed_at_the_size_of_its_published_accuracy() -> None:
    image = torch.ones(1, 3, 224, 224)
    for name, side in (("timm:fastvit_t8", 256), ("timm:repvit_m0_9", 224), ("my:net", 224)):
        given = at_published_size(name, torch.nn.Identity(), image)(image)
        assert given.shape == (1, 3, side, side)
        assert given.sum() == image.sum()


def test_report_draws_several_files_on_one_page(reparam_command, tiny: str) -> None:
    pytest.importorskip("jinja2")
    for name in ("net", "other"):
        line = ("bench", f"{tiny}:{name}", *FAST, "-o", f"{name}.json")
        assert reparam_command(*line).code == 0
    ran = reparam_command("report", "net.json", "other.json", "-o", "page.html")
    assert ran.code == 0, ran.err
    assert "Drew the page of net.json, other.json" in ran.out
    page = Path("page.html").read_text(encoding="utf-8")
    assert f"{tiny}:net, train form" in page
    assert f"{tiny}:other, deploy form" in page


def test_figure1_compares_both_kinds_and_knows_their_accuracies() -> None:
    known = [published(name) for name in FIGURE1_MODELS]
    assert all(entry is not None for entry in known)
    single = [entry.family in REPARAMETERIZED_FAMILIES for entry in known if entry]
    assert any(single)
    assert not all(single)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((), "there is nothing to measure; give one or more MODEL"),
        (("{tiny}:net", "--engines", "nonesuch"), "no engine is called 'nonesuch'"),
        (("{tiny}:net", "--precisions", "fp8"), "precision is 'fp8'"),
        (("{tiny}:net", "--forms", "folded"), "'folded' is no form"),
        (("{tiny}:net", "--batches", "1,x"), "is no list of whole numbers"),
        (("{tiny}:net", "--batches", "0"), "every batch is at least 1"),
        (("{tiny}:net", "--threads", "0"), "threads is 0"),
        (("{tiny}:net", "--engines", ","), "names nothing"),
        (("{tiny}:net", "-o", "r.csv"), "the results are JSON"),
        (("{tiny}:net", "-o", "absent/r.json"), "does not exist; create that folder"),
        (("{tiny}:net", "{tiny}:other", "-w", "{tiny}.py"), "--weights are for one MODEL"),
        (("absent.onnx",), "there is no file absent.onnx to measure"),
        (("{tiny}:net", "{tiny}:plain", "--size", "8"), "does not run on an input"),
        (("{tiny}:net", "--pick", "-o", "net.onnx"), "give -o without '.onnx'"),
        (("{tiny}:net", "{tiny}:other", "--pick"), "found 2 models"),
        (("net.onnx", "--pick"), "is in the format of one engine already"),
        (("{tiny}:net", "--pick", "--figure1"), "leave one out"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "nothing",
)
def test_bad_input_is_one_message_and_exit_code_2(
    reparam_command, tiny: str, line: tuple[str, ...], message: str
) -> None:
    given = [part.format(tiny=tiny) for part in line]
    if "--engines" not in given:
        given += ["--engines", "eager"]
    Path("w.pth").write_bytes(b"")
    ran = reparam_command("bench", *given)
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_bad_input_leaves_earlier_results_alone(reparam_command, tiny: str) -> None:
    Path("r.json").write_text("kept", encoding="utf-8")
    assert reparam_command("bench", f"{tiny}:absent", *FAST, "-o", "r.json").code == 2
    assert Path("r.json").read_text(encoding="utf-8") == "kept"
