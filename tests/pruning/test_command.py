"""``reparam prune``, as a person and as a program use it, and the way on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import reparam
from reparam.checkpoints import read_weights
from reparam.cli import main
from reparam.cli.prune_command import score
from reparam.lab.data import ArraySplit, ImageData
from reparam.models import resolve
from reparam.report import load_results

for _package in ("typer", "rich", "torch_pruning", "sklearn", "safetensors"):
    pytest.importorskip(_package)

FACTORY = """
from reparam.models import RepVGG, RepVGGSpec

def net(num_classes=10):
    spec = RepVGGSpec(depths=(1, 1), widths=(16, 32), stem_width=16, stem_stride=1, strides=2)
    return RepVGG(spec, num_classes=num_classes)
"""
DIGITS = ("--data", "digits", "--input-size", "8", "--images", "64", "--evaluate", "50")


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a net whose trained and fused weights lie in the working folder."""
    module = f"prunable_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{module}.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    torch.manual_seed(1)
    trained = resolve(f"{module}:net").eval()
    torch.save(trained.state_dict(), "trained.pth")
    torch.save(reparam.fuse(trained).state_dict(), "fused.pth")
    return f"{module}:net"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]):
    """Runs ``reparam prune``, returns its exit code and both streams."""

    def run(*line: str) -> tuple[int, str, str]:
        code = main(line)
        return code, *capsys.readouterr()

    return run


def test_a_pruned_net_is_written_told_and_goes_on(name: str, command) -> None:
    fused = ("prune", name, "--weights", "fused.pth", "--macs", "0.5", *DIGITS)
    code, out, err = command(*fused, "-o", "pruned.safetensors")
    assert code == 0, err
    assert "Pruned" in out
    assert "stages.1.0.branches" in out
    assert "validation accuracy" in out
    assert "Solved" in out
    assert f"Next: reparam train --model {name} --weights pruned.safetensors" in out
    assert reparam.read_metadata("pruned.safetensors")["pruned"]["head"][1] == 10
    code, out, err = command("plan", name, "--weights", "pruned.safetensors", "--input-size", "8")
    assert code == 0, err
    again = ("prune", name, "-w", "pruned.safetensors", "--macs", "0.8", "--input-size", "8")
    code, out, err = command(*again, "--multiple", "4", "-o", "twice.safetensors")
    assert code == 0, err
    assert "pruned.safetensors" in out


def test_pruned_weights_are_trained_on_with_branches(name: str, command) -> None:
    pytest.importorskip("lightning")
    line = ("prune", name, "-w", "fused.pth", "--macs", "0.5", "--input-size", "8")
    assert command(*line, "-o", "pruned.safetensors")[0] == 0
    code, out, err = command(
        "train", "--model", name, "--weights", "pruned.safetensors", "--branch", "repvgg",
        "--data", "digits", "--size", "8", "--epochs", "1", "--accelerator", "cpu",
        "--export", "deploy.safetensors", "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    assert "with repvgg branches" in out
    widths = reparam.read_metadata("pruned.safetensors")["pruned"]
    deployed = read_weights("run/deploy.safetensors").tensors
    for layer, (inputs, outputs) in widths.items():
        assert deployed[f"{layer}.weight"].shape[:2] == (outputs, inputs)
    assert reparam.read_metadata("run/deploy.safetensors")["pruned"] == widths
    code, out, err = command(
        "plan", name, "--weights", "run/deploy.safetensors", "--input-size", "8"
    )
    assert code == 0, err


@pytest.mark.parametrize("importance", ["magnitude", "bn_scale", "first_order"])
def test_every_importance_and_json(name: str, command, importance: str) -> None:
    line = ["prune", name, "-w", "fused.pth", "--macs", "0.5", "--importance", importance, *DIGITS]
    if importance == "bn_scale":
        line += ["--trained", "trained.pth"]
    code, out, err = command(*line, "-o", "pruned.pt2", "--no-reconstruct", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["importance"] == importance
    assert told["multiply_adds"]["after"] <= 0.5 * told["multiply_adds"]["before"]
    assert told["accuracy"].keys() == {"before", "after"}
    assert told["solved"] == []
    assert told["export"]["path"] == "pruned.pt2"
    assert "pruned" in reparam.read_metadata("pruned.pt2")


def test_latency_is_measured(name: str, command) -> None:
    line = ("prune", name, "-w", "fused.pth", "--input-size", "32", "--engine", "eager")
    code, out, err = command(*line, "--macs", "0.5", "--threads", "1", "-o", "pruned.pt2")
    assert code == 0, err
    assert "latency in eager" in out
    code, out, err = command(*line, "--latency", "0.01us", "--threads", "1", "-o", "small.pt2")
    assert code == 2
    assert "cannot be reached: the smallest net that was tried takes" in err
    assert not Path("small.pt2").exists()


def test_a_page_of_it_stands_beside_its_numbers(name: str, command) -> None:
    pytest.importorskip("jinja2")
    Path("out").mkdir()
    line = ("prune", name, "-w", "fused.pth", "--macs", "0.5", *DIGITS)
    code, out, err = command(*line, "-o", "out/pruned.pt2", "--report", "pruned.html")
    assert code == 0, err
    assert f"Page: {Path('pruned.html').resolve()}" in out
    results = load_results("pruned.json")
    (record,) = results.prunings
    assert record.samples == 50
    assert record.multiply_adds_after <= 0.5 * record.multiply_adds_before
    assert f"{100 * record.correct_after / 50:.2f} %" in out
    # What lies in another folder is not said to lie beside the page.
    assert results.files.keys() == {"pruned.json"}
    assert {"torch", "torch-pruning"} <= results.environment.keys()
    page = Path("pruned.html").read_text(encoding="utf-8")
    assert all(layer.name in page for layer in record.layers)
    assert command("report", "pruned.json", "-o", "again.html")[0] == 0
    assert Path("again.html").read_text(encoding="utf-8") == page


def test_some_images_are_taken_from_all_classes() -> None:
    labels = torch.arange(50) // 10  # class by class, as in folders
    split = ArraySplit(torch.zeros(50, 3, 1, 1, dtype=torch.uint8), labels)
    ones = (1.0, 1.0, 1.0)
    names = ("a", "b", "c", "d", "e")
    data = ImageData("arrays", names, (3, 1, 1), ones, ones, split, split, None, "")
    always_first = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 5))
    with torch.no_grad():
        always_first[1].weight.zero_()
        always_first[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))
    assert score(always_first, data, 10) == (2, 10)
    assert score(always_first, data, None) == (10, 50)


BAD = {
    "not fused": (("-w", "trained.pth", "--macs", "0.5"), "-o fused.safetensors; then give"),
    "no target": (("-w", "fused.pth"), "give --macs SHARE or --latency SHARE"),
    "bad ratio": (("-w", "fused.pth", "--macs", "1.5"), "macs is 1.5; needed is the share"),
    "unreachable": (("-w", "fused.pth", "--macs", "0.0001"), "cannot be reached: with all"),
    "no data": (
        ("-w", "fused.pth", "--macs", "0.5", "--importance", "first_order"),
        "there are no data",
    ),
    "no training form": (
        ("-w", "fused.pth", "--macs", "0.5", "--importance", "bn_scale"),
        "give trained=",
    ),
    "unknown data": (("-w", "fused.pth", "--macs", "0.5", "--data", "nowhere"), "no data at"),
    "validation alone": (
        ("-w", "fused.pth", "--macs", "0.5", "--validation", "digits"),
        "give --data too",
    ),
    "wrong shape": (
        ("-w", "fused.pth", "--macs", "0.5", "--shape", "1,5,8,8"),
        "does not run on an input of shape 1x5x8x8",
    ),
    "unknown layer": (("-w", "fused.pth", "--macs", "0.5", "--keep", "x"), "no layer 'x' to keep"),
    "suffix": (("-w", "fused.pth", "--macs", "0.5", "-o", "net.xyz"), "names no format"),
    "folder": (("-w", "fused.pth", "--macs", "0.5", "-o", "no/net.pt2"), "does not exist"),
    "page": (("-w", "fused.pth", "--macs", "0.5", "--report", "page.txt"), "suffix .html"),
    "page's folder": (
        ("-w", "fused.pth", "--macs", "0.5", "--report", "no/page.html"),
        "no does not exist",
    ),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_exit_code_2_and_nothing_is_written(
    name: str, command, options: tuple[str, ...], message: str
) -> None:
    before = set(Path().iterdir())
    line = ["prune", name, "-o", "pruned.safetensors", *options]
    if "--shape" not in options and "--data" not in options:
        line += ["--input-size", "8"]
    code, out, err = command(*line)
    assert code == 2, err
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert {path for path in Path().iterdir() if path.name != "__pycache__"} == before


def test_an_onnx_file_is_refused(name: str, command) -> None:
    del name
    code, _, err = command("prune", "net.onnx", "--macs", "0.5", "-o", "pruned.onnx")
    assert code == 2
    assert "channels are pruned in the net that it was written from" in err
