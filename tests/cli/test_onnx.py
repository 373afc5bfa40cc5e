"""plan, fuse and verify on ONNX files: what they say, and that nothing wrong is ever written."""

from __future__ import annotations

import shlex
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


@pytest.fixture(scope="module")
def wide_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Exported once, which takes a while."""
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    reparam.export(wide(), path, torch.randn(2, 3, 8, 8))
    return path.read_bytes()


@pytest.fixture
def wide_file(folder: Path, wide_bytes: bytes) -> str:
    (folder / "wide.onnx").write_bytes(wide_bytes)
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
    from reparam.fusing import Plan

    right = Plan.apply

    def wrong(plan: Plan) -> Any:
        fused = right(plan)
        tensor = next(t for t in fused.graph.initializer if len(t.dims) == 4)
        value = onnx.numpy_helper.to_array(tensor) * (1 + error)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype("float32"), tensor.name))
        return fused

    monkeypatch.setattr(Plan, "apply", wrong)
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
        (("fuse", "wide.onnx", "-o", "wide.onnx"), "it is an input"),
        (("plan", "wide.onnx", "-w", "w.safetensors"), "leave --weights out"),
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
    Path("w.pth").write_bytes(b"")
    ran = reparam_command(*line)
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert message in ran.err
    assert not Path("net.onnx").exists()


def test_a_file_of_fixed_shape_is_measured_and_compared_at_it(reparam_command, tiny: str) -> None:
    torch.manual_seed(0)
    line = ("fuse", f"{tiny}:net", "-o", "fixed.onnx", "--fixed-shapes", "--shape", "2,3,9,8")
    assert reparam_command(*line).code == 0
    few = ("--engines", "onnxruntime", "--rounds", "2")
    assert reparam_command("bench", "fixed.onnx", *few).code == 0
    assert reparam_command("bench", "fixed.onnx", *few, "--shape", "2,3,9,8").code == 0
    assert reparam_command("verify", f"{tiny}:net", "fixed.onnx").code == 0
    assert reparam_command("verify", "fixed.onnx", "fixed.onnx").code == 0
    for wrong in (("--size", "32"), ("--shape", "2,3,8,8"), ("--shape", "2,3,9")):
        for command in (("bench", "fixed.onnx", *few), ("verify", f"{tiny}:net", "fixed.onnx")):
            ran = reparam_command(*command, *wrong)
            assert ran.code == 2, (command, wrong, ran.err)
            assert "2,3,9,8" in ran.err
    assert reparam_command("verify", "fixed.onnx", "fixed.onnx", "--size", "32").code == 2
    assert reparam_command("bench", "fixed.onnx", *few, "--batches", "3").code == 2


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("shape", [(1, 1, 12, 12), (2, 5, 7), (3, 7)])
def test_files_of_other_channels_and_dimensions_are_measured(
    reparam_command, shape: tuple[int, ...]
) -> None:
    sizes = ", ".join(map(str, shape))
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[{sizes}] x) => (float[{sizes}] y) {{ y = Relu(x) }}""")
    onnx.save(model, "net.onnx")
    ran = reparam_command("bench", "net.onnx", "--engines", "onnxruntime", "--rounds", "2")
    assert ran.code == 0, ran.err


def two_inputs() -> Any:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[n, 2, h, w] image, float[n, 2, h, w] other) => (float[n, 2, a, b] y)
        <float[2, 2, 1, 1] k = {1, 2, 3, 4}, float[2] g = {1.5, 2}, float[2] b = {0.5, 1}>
        {
            c = Conv(image, k)
            d = BatchNormalization(c, g, b, b, g)
            y = Add(d, other)
        }""")
    onnx.save(model, "two.onnx")
    return model


@pytest.mark.usefixtures("folder")
def test_shapes_of_several_inputs_are_given_by_name(reparam_command) -> None:
    two_inputs()
    for given in ((), ("image=2x2x5x6", "other=2,2,5,6"), ("other=1,2,5,6",)):
        options = [word for shape in given for word in ("--shape", shape)]
        ran = reparam_command("fuse", "two.onnx", "-o", "fused.onnx", *options)
        assert ran.code == 0, ran.err
        assert reparam_command("verify", "two.onnx", "fused.onnx", *options).code == 0
    for wrong in (
        ("1,2,5,6",), ("absent=1,2,5,6",), ("image=1,2,5,6", "image=1,2,5,6"), ("image=1,2",),
        ("image=",), ("=1,2,5,6",), ("image=1,2,5,6", "other=1,2,9,9"),
    ):  # fmt: skip
        options = [word for shape in wrong for word in ("--shape", shape)]
        ran = reparam_command("fuse", "two.onnx", "-o", "fused.onnx", *options)
        assert ran.code == 2, (wrong, ran.err)
        assert "input_shapes" not in ran.err
        assert "check=" not in ran.err


@pytest.mark.usefixtures("folder")
def test_a_file_is_written_without_a_comparison_where_that_is_asked_for(
    reparam_command,
) -> None:
    two_inputs()
    ran = reparam_command("fuse", "two.onnx", "-o", "fused.onnx", "--no-check")
    assert ran.code == 0, ran.err
    assert "not compared" in ran.out
    told = reparam_command("fuse", "two.onnx", "-o", "fused.onnx", "--no-check", "--json").json
    assert "verdict" not in told
    assert told["after"] == {"Conv": 1, "Add": 1}


@pytest.mark.usefixtures("folder")
def test_the_option_that_folds_weights_listed_as_inputs_is_named(
    reparam_command,
) -> None:
    model = two_inputs()
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, 1, list(tensor.dims))
        )
    onnx.save(model, "listed.onnx")
    assert "--freeze-inputs" in reparam_command("plan", "listed.onnx").out
    ran = reparam_command("fuse", "listed.onnx", "-o", "fused.onnx")
    assert ran.code == 0, ran.err
    assert "--freeze-inputs" in ran.out
    told = reparam_command("fuse", "listed.onnx", "-o", "f.onnx", "--freeze-inputs", "--json").json
    assert told["after"] == {"Conv": 1, "Add": 1}


def test_options_for_files_are_refused_for_models(reparam_command, tiny: str) -> None:
    for option in (("--no-check",), ("--freeze-inputs",), ("--shape", "x=1,3,8,8")):
        ran = reparam_command("fuse", f"{tiny}:net", "-o", "net.onnx", *option)
        assert ran.code == 2, ran.err


def test_diff_writes_the_parts_that_differ(reparam_command, wide_file: str) -> None:
    other = onnx.load(wide_file)
    stored = next(entry for entry in other.graph.initializer if len(entry.dims) == 4)
    numbers = onnx.numpy_helper.to_array(stored).copy()
    numbers[0, 0, 0, 0] += 1
    stored.CopyFrom(onnx.numpy_helper.from_array(numbers, stored.name))
    onnx.save(other, "other.onnx")
    assert reparam_command("diff", wide_file, "other.onnx", "--explain").code == 1
    first, second = onnx.load("wide.first.onnx"), onnx.load("other.second.onnx")
    assert 0 < len(first.graph.node) < len(other.graph.node)
    assert any(entry.name == stored.name for entry in second.graph.initializer)
    Path("wide.first.onnx").write_text("mine")
    assert reparam_command("diff", wide_file, "other.onnx", "--explain").code == 2
    assert Path("wide.first.onnx").read_text() == "mine"
    assert reparam_command("diff", wide_file, "other.onnx", "--explain", "--overwrite").code == 1
    assert onnx.load("wide.first.onnx").graph.node
    assert reparam_command("diff", "repvgg_a0", "other.onnx", "--explain").code == 2


def test_each_command_that_fuse_names_next_runs_as_it_stands(reparam_command) -> None:
    """Of a file with several inputs, whole or cut down to one result."""
    inputs = [
        onnx.helper.make_tensor_value_info("image", 1, ["n", 3, 8, 8]),
        onnx.helper.make_tensor_value_info("scale", 1, ["n", 2]),
    ]
    weight = torch.randn(4, 3, 3, 3).numpy()
    numbers = [torch.rand(4).add(0.5).numpy() for _ in range(4)]
    stored = {"w": weight, **dict(zip("abcd", numbers, strict=True))}
    nodes = [
        onnx.helper.make_node("Conv", ["image", "w"], ["y"]),
        onnx.helper.make_node("BatchNormalization", ["y", *"abcd"], ["maps"]),
        onnx.helper.make_node("Mul", ["scale", "scale"], ["sizes"]),
    ]
    outputs = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("maps", "sizes")]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), "two.onnx")
    shapes = ("--shape", "image=2,3,8,8", "--shape", "scale=2,2")
    for how in ((), shapes, ("--outputs", "maps"), ("--outputs", "maps", *shapes)):
        ran = reparam_command("fuse", "two.onnx", "-o", "out.onnx", *how)
        assert ran.code == 0, ran.err
        (told,) = (line for line in ran.out.splitlines() if line.startswith("Next: reparam bench"))
        words = shlex.split(told.removeprefix("Next: reparam "))
        ran = reparam_command(*words, "--rounds", "1", "--threads", "1")
        assert ran.code == 0, ran.err
    assert reparam_command("bench", "two.onnx", "--shape", "other=2,2").code == 2
    assert reparam_command("bench", "two.onnx", "--shape", "2,3,8,8").code == 2
    assert reparam_command("bench", "repvgg_a0", *shapes).code == 2
