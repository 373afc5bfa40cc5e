"""plan, fuse and verify on ONNX files: what they say, and that nothing wrong is ever written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reparam

for _package in ("typer", "rich", "onnxruntime", "onnxscript"):
    pytest.importorskip(_package)
onnx = pytest.importorskip("onnx")


def wide() -> nn.Module:
    """A RepVGG whose norms have statistics of their own, so that each of them matters."""
    torch.manual_seed(0)
    spec = reparam.models.RepVGGSpec(
        depths=(2,), widths=(4,), stem_width=4, stem_stride=1, strides=1
    )
    net = reparam.models.RepVGG(spec, num_classes=3).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.eps = float(torch.empty(1).uniform_(1e-5, 1e-2))
    return net


@pytest.fixture
def wide_file(folder: Path) -> str:
    reparam.export(wide(), folder / "wide.onnx", torch.randn(2, 3, 8, 8))
    return "wide.onnx"


def convolutions(file: str) -> int:
    return sum(node.op_type == "Conv" for node in onnx.load(file).graph.node)


def test_plan_of_a_file(reparam_command, wide_file: str) -> None:
    ran = reparam_command("plan", wide_file)
    assert ran.code == 0, ran.err
    assert "3 regions fold" in ran.out
    assert "Next: reparam fuse wide.onnx -o wide-fused.onnx" in ran.out
    assert len(reparam_command("plan", wide_file, "--json").json["regions"]) == 3


def test_fused_file_is_written_and_equal(reparam_command, wide_file: str) -> None:
    before = Path(wide_file).read_bytes()
    ran = reparam_command("fuse", wide_file, "-o", "straight.onnx", "--size", "8")
    assert ran.code == 0, ran.err
    assert (convolutions(wide_file), convolutions("straight.onnx")) == (6, 3)
    assert Path(wide_file).read_bytes() == before
    assert "equal in ONNX Runtime" in ran.out
    assert "Next: reparam bench wide.onnx straight.onnx --engines onnxruntime" in ran.out
    checked = reparam_command("verify", wide_file, "straight.onnx", "--size", "8")
    assert checked.code == 0, checked.err
    assert "straight.onnx is equal to wide.onnx" in checked.out


def test_fuse_as_json(reparam_command, wide_file: str) -> None:
    told = reparam_command("fuse", wide_file, "-o", "s.onnx", "--size", "8", "--json").json
    assert (told["before"]["Conv"], told["after"]["Conv"]) == (6, 3)
    assert len(told["plan"]["regions"]) == 3
    assert told["verdict"]["ok"] is True
    assert 0 < told["verdict"]["control"] < 1e-4
    assert told["export"]["path"] == "s.onnx"


@pytest.mark.parametrize("error", [1e-3, 3e-5])
def test_a_wrong_fold_is_not_written(
    reparam_command, wide_file: str, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    from reparam.fusing.onnx_plan import OnnxPlan

    right = OnnxPlan.apply

    def wrong(plan: OnnxPlan) -> Any:
        fused = right(plan)
        tensor = next(t for t in fused.graph.initializer if len(t.dims) == 4)
        value = onnx.numpy_helper.to_array(tensor) * (1 + error)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype("float32"), tensor.name))
        return fused

    monkeypatch.setattr(OnnxPlan, "apply", wrong)
    ran = reparam_command("fuse", wide_file, "-o", "straight.onnx", "--size", "8")
    assert ran.code == 1
    assert "nothing is written" in ran.err
    assert sorted(path.name for path in Path().glob("*.onnx*")) == ["wide.onnx"]


def test_files_of_different_nets_differ(reparam_command, wide_file: str, folder: Path) -> None:
    other = wide()
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    reparam.export(other, folder / "other.onnx", torch.randn(2, 3, 8, 8))
    ran = reparam_command("verify", wide_file, "other.onnx", "--size", "8")
    assert ran.code == 1
    assert ran.out == ""


def test_files_with_other_outputs_differ_by_their_shapes(
    reparam_command, wide_file: str, folder: Path
) -> None:
    other = nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()).eval()
    reparam.export(other, folder / "other.onnx", torch.randn(2, 3, 8, 8))
    ran = reparam_command("verify", wide_file, "other.onnx", "--size", "8")
    assert ran.code == 1
    assert "(1, 5)" in ran.err
    assert "(1, 3)" in ran.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("plan", "absent.onnx"), "cannot read absent.onnx: it does not exist"),
        (("plan", "broken.onnx"), "cannot read broken.onnx"),
        (("fuse", "wide.onnx", "-o", "wide.onnx"), "it is a part of the model that is read"),
        (("plan", "wide.onnx", "-w", "w.pth"), "leave --weights out"),
        (("plan", "wide.onnx", "--num-classes", "3"), "leave --num-classes out"),
        (("fuse", "wide.onnx", "-o", "net.xml"), "give -o a name.onnx"),
        (
            ("fuse", "wide.onnx", "-o", "net.onnx", "--shape", "1,5,8,8"),
            "does not run wide.onnx",
        ),
        (("verify", "wide.onnx", "w.safetensors"), "so must w.safetensors be"),
        (("verify", "wide.onnx", "absent.onnx"), "it does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_message_and_exit_code_2(
    reparam_command, wide_file: str, line: tuple[str, ...], message: str
) -> None:
    assert wide_file == "wide.onnx"
    Path("broken.onnx").write_bytes(b"\x93not a model")
    Path("w.safetensors").write_bytes(b"")
    ran = reparam_command(*line)
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert message in ran.err
    assert not Path("net.onnx").exists()
