"""The demo, whole and in small: every step on real engines, and the folder that it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reparam.fusing import Plan
from reparam.report import load_results

for _package in ("typer", "rich", "sklearn", "lightning", "torchvision", "onnxruntime", "jinja2"):
    pytest.importorskip(_package)
pytest.importorskip("onnxscript")
pytest.importorskip("safetensors")


def test_quick_demo(reparam_command, folder: Path) -> None:
    ran = reparam_command("demo", "--quick", "--out", "left/behind")
    assert ran.code == 0, ran.err
    left = folder / "left" / "behind"
    assert sorted(path.name for path in left.iterdir()) == [
        "index.html",
        "model.onnx",
        "model.safetensors",
        "results.json",
        "train-form.safetensors",
    ]
    results = load_results(left / "results.json")
    _check_story(results)
    page = (left / "index.html").read_text(encoding="utf-8")
    assert "the same predictions on all" in page
    assert str(left / "index.html") in ran.out
    assert "\x1b" not in ran.out + ran.err
    for path in left.iterdir():
        assert str(folder).encode() not in path.read_bytes()


def _check_story(results) -> None:
    models = {model.key: model for model in results.models}
    blocks = len(results.plan.regions)
    assert models["deploy"].convolutions == blocks
    assert models["deploy"].norms == 0
    assert models["train"].convolutions == 2 * blocks
    assert models["deploy"].parameters < models["train"].parameters
    assert all(pair.agree == pair.total == results.data.test for pair in results.agreement)
    assert {pair.engine for pair in results.agreement} == {"eager", "ONNX Runtime"}
    assert all(check.ok for check in results.checks)
    assert {row.engine for row in results.latency[0].rows} == {"eager", "ONNX Runtime"}
    held = {
        t.model: t.peak_bytes // results.memory[1].input_bytes for t in results.memory[1].traces
    }
    assert held == {"train": 3, "resnet": 2, "deploy": 1}
    assert len(results.block.before) == 3
    assert results.twins.convolutions == 5
    assert {twin.role for twin in results.twins.twins} == {"train", "comparator"}


def test_the_comparator_is_of_about_equal_size() -> None:
    from reparam.cli.demo.nets import FULL, build_repvgg, build_resnet
    from reparam.models import RepVGG

    deploy = RepVGG(build_repvgg(FULL, 10, 3).spec.deploy(), num_classes=10)
    sizes = [
        sum(parameter.numel() for parameter in net.parameters())
        for net in (deploy, build_resnet(FULL, 10, 3))
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


def test_missing_packages_are_told_at_once(
    reparam_command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ("lightning", "jinja2")
    monkeypatch.setattr("reparam.cli.demo_command.available", lambda package: package not in absent)
    ran = reparam_command("demo", "--quick", "--out", "never")
    assert ran.code == 2
    assert "lightning, jinja2" in ran.err
    assert "pip install 'reparam[all]'" in ran.err
    assert not (folder / "never").exists()


def test_a_folder_that_cannot_be_made_is_bad_input(reparam_command, folder: Path) -> None:
    (folder / "file").write_text("in the way", encoding="utf-8")
    ran = reparam_command("demo", "--quick", "--out", "file/below")
    assert ran.code == 2
    assert "cannot make the folder" in ran.err


def test_a_disagreement_is_exit_code_1_and_on_the_page(
    reparam_command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    right = Plan.apply

    def wrong(plan: Plan) -> torch.nn.Module:
        fused = right(plan)
        with torch.no_grad():
            fused.get_submodule("head").bias.add_(1.0)
        return fused

    monkeypatch.setattr(Plan, "apply", wrong)
    monkeypatch.setattr("reparam.export", lambda *_, **__: pytest.fail("exported a wrong model"))
    ran = reparam_command("demo", "--quick", "--out", "bad")
    assert ran.code == 1
    stored = json.loads((folder / "bad" / "results.json").read_text(encoding="utf-8"))
    assert not all(check["ok"] for check in stored["checks"])
    assert "different" in (folder / "bad" / "index.html").read_text(encoding="utf-8")
