"""quantize: from a fused net and data to a file in eight bits, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import reparam

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


def test_images_that_do_not_fit_are_refused(reparam_command, tiny: str):
    ran = reparam_command("quantize", f"{tiny}:plain", *DATA, "-o", "q.onnx")
    assert ran.code == 2
    assert "does not run on images of the data" in ran.err
    assert not Path("q.onnx").exists()


def test_too_large_a_loss_writes_nothing(reparam_command, fused):
    ran = reparam_command("quantize", *fused, *DATA, "-o", "q.onnx", "--max-drop", "-100")
    assert ran.code == 1
    assert "nothing was written" in ran.err
    assert not Path("q.onnx").exists()


def test_an_onnx_file_is_no_model_here(reparam_command):
    ran = reparam_command("quantize", "net.onnx", *DATA, "-o", "q.onnx")
    assert ran.code == 2
    assert "is a file" in ran.err
