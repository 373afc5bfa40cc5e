"""quantize: from a fused net and data to a file in eight bits, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import reparam
from reparam.report import load_results

for _package in ("typer", "rich", "safetensors", "sklearn", "onnxruntime", "onnxscript", "nncf"):
    pytest.importorskip(_package)

DATA = ("--data", "digits", "--size", "8", "--samples", "32", "--evaluate", "40")


@pytest.fixture
def fused(reparam_command, tiny: str) -> tuple[str, ...]:
    """A model and the fused weights that `reparam fuse` wrote."""
    name = f"{tiny}:classifier"
    ran = reparam_command("fuse", name, "-o", "fused.safetensors", "--size", "8")
    assert ran.code == 0, ran.err
    return (name, "--weights", "fused.safetensors")


@pytest.mark.parametrize(("out", "engine"), [("q.onnx", "onnxruntime"), ("q.xml", "openvino")])
def test_a_fused_net_is_quantized_and_told_of(reparam_command, fused, out: str, engine: str):
    ran = reparam_command("quantize", *fused, *DATA, "-o", out)
    assert ran.code == 0, ran.err
    assert "accuracy" in ran.out
    assert "judged on 40 test images of digits" in ran.out
    assert "Layers that hurt most" in ran.out
    assert f"Wrote {out}" in ran.out
    assert f"Next: reparam bench {out} --engines {engine} --input-size 8" in ran.out
    assert reparam.read_metadata(out)["precision"] == "int8"
    assert reparam.read_metadata(out)["source"] == fused[0]


def test_json_and_the_options_tell_all(reparam_command, fused):
    ran = reparam_command(
        "quantize", *fused, *DATA, "-o", "q.onnx", "--equalize", "--keep-float", "1",
        "--no-bias-correction", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    told = ran.json
    assert told["score"]["samples"] == 40
    assert len(told["kept_float"]) == 1
    assert len(told["quantized"]) == 3
    assert len(told["equalised"]) == 3
    assert told["bias_corrected"] is False
    assert len(told["diagnosis"]["layers"]) == 4


def test_images_are_normalised_as_the_net_was_trained(reparam_command, fused):
    line = ("quantize", *fused, *DATA, "-o", "q.onnx", "--json")
    found = [
        {
            layer["name"]: (layer["input_low"], layer["input_high"])
            for layer in reparam_command(*line, *how).json["diagnosis"]["layers"]
        }
        for how in ((), ("--mean", "0,0,0", "--std", "1,1,1"))
    ]
    assert found[0].keys() == found[1].keys()
    lows, highs = zip(*(ranges[next(iter(ranges))] for ranges in found), strict=True)
    assert lows[0] < 0 <= lows[1]
    assert highs[1] <= 1 < highs[0]


def test_a_net_with_branches_is_sent_to_fuse(reparam_command, tiny: str):
    ran = reparam_command("quantize", f"{tiny}:classifier", *DATA, "-o", "q.onnx")
    assert ran.code == 2
    assert "is not fused" in ran.err
    command = ran.err[ran.err.index("reparam fuse ") :].partition(";")[0]
    assert not Path("q.onnx").exists()
    # What it says works, and so does the command that comes after it.
    again = reparam_command(*command.split()[1:])
    assert again.code == 0, again.err
    last = ("--weights", "fused.safetensors", "-o", "q.onnx")
    assert reparam_command("quantize", f"{tiny}:classifier", *DATA, *last).code == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--data", "nowhere", "-o", "q.onnx"), "no data at 'nowhere'"),
        (("--data", "digits", "-o", "q.pt2"), "q.pt2"),
        (("--data", "digits", "-o", "missing/q.onnx"), "not a folder"),
        (("--data", "digits", "-o", "q.onnx", "--engine", "openvino"), ".xml"),
        (("--data", "digits", "-o", "q.onnx", "--keep-float", "99", "--size", "8"), "keep_float"),
        (("--data", "digits", "-o", "q.onnx", "--weight-bits", "3", "--size", "8"), "weight_bits"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(
    reparam_command, fused, folder: Path, changes: tuple[str, ...], message: str
):
    before = sorted(path.name for path in folder.iterdir() if path.is_file())
    ran = reparam_command("quantize", *fused, *changes)
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == before


def test_a_page_of_it_stands_beside_its_numbers(reparam_command, fused, folder: Path):
    pytest.importorskip("jinja2")
    ran = reparam_command("quantize", *fused, *DATA, "-o", "q.onnx", "--report", "int8.html")
    assert ran.code == 0, ran.err
    assert f"Page: {folder / 'int8.html'}" in ran.out
    results = load_results("int8.json")
    (record,) = results.quantizations
    assert (record.samples, len(record.layers), record.file) == (40, 4, "q.onnx")
    assert results.files.keys() == {"q.onnx", "int8.json"}
    assert {"torch", "nncf", "cpu"} <= results.environment.keys()
    page = Path("int8.html").read_text(encoding="utf-8")
    assert all(layer.name in page for layer in record.layers)
    # The command on the page makes the same again, and the numbers draw a page with others'.
    assert results.command == (
        f"reparam quantize {fused[0]} --data digits --out q.onnx --weights fused.safetensors "
        "--samples 32 --evaluate 40 --input-size 8 --report int8.html"
    )
    ran = reparam_command(*results.command.split()[1:], "--json", "--no-bias-correction")
    assert ran.code == 0, ran.err
    assert ran.json["score"]["samples"] == 40
    again = load_results("int8.json")
    assert again.quantizations[0].bias_corrected is False
    assert again.command.endswith(
        "--no-bias-correction --samples 32 --evaluate 40 --input-size 8 --report int8.html --json"
    )
    ran = reparam_command("report", "int8.json", "int8.json", "-o", "both.html")
    assert ran.code == 0, ran.err
    assert "Float beside eight bits" in Path("both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("int8.pdf", "give --report with the suffix .html, not 'int8.pdf'"),
        ("missing/int8.html", "missing does not exist"),
        ("mine.html", "go into mine.json, which is there and is no results file"),
        ("taken.html", "taken.html"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_first(
    reparam_command, fused, folder: Path, page: str, message: str
):
    pytest.importorskip("jinja2")
    Path("mine.json").write_text('{"mine": true}', encoding="utf-8")
    Path("taken.html").mkdir()
    before = sorted(folder.iterdir())
    ran = reparam_command("quantize", *fused, *DATA, "-o", "q.onnx", "--report", page)
    assert ran.code == 2, ran.err
    assert message in ran.err
    assert sorted(folder.iterdir()) == before
    assert Path("mine.json").read_text(encoding="utf-8") == '{"mine": true}'


def test_images_that_do_not_fit_are_refused(reparam_command, tiny: str):
    ran = reparam_command("quantize", f"{tiny}:plain", *DATA, "-o", "q.onnx")
    assert ran.code == 2
    assert "does not run on an input of shape 2x3x8x8" in ran.err
    assert not Path("q.onnx").exists()


def test_too_large_a_loss_writes_nothing(reparam_command, fused):
    ran = reparam_command("quantize", *fused, *DATA, "-o", "q.onnx", "--max-drop", "-100")
    assert ran.code == 1
    assert "nothing was written" in ran.err
    assert not Path("q.onnx").exists()
    ran = reparam_command(
        "quantize", *fused, *DATA, "-o", "q.onnx", "--max-drop", "-100", "--report", "int8.html"
    )
    assert ran.code == 1
    assert not list(Path().glob("int8.*"))


def test_an_onnx_file_is_no_model_here(reparam_command):
    ran = reparam_command("quantize", "net.onnx", *DATA, "-o", "q.onnx")
    assert ran.code == 2
    assert "is a file" in ran.err
