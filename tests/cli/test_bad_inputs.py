"""Whatever a command is given that it cannot use: exit code 2, one message, and nothing changed."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reparam.cli import main
from reparam.report import Results, to_json

onnx = pytest.importorskip("onnx")
Image = pytest.importorskip("PIL.Image")
safetensors = pytest.importorskip("safetensors.torch")
for _package in ("typer", "rich", "onnxruntime", "onnxscript", "lightning", "torch_pruning"):
    pytest.importorskip(_package)

MODELS = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def fused():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

built = fused()
number = 3

def none():
    return None
"""
NET, FUSED = "bad_models:net", "bad_models:fused"
SMALL = ("--input-size", "8")
KINDS = ("missing", "folder", "empty", "text", "pipe", "device", "loop", "dangling")


def _image(value: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(content, "png")
    return content.getvalue()


def _write_models() -> None:
    Path("bad_models.py").write_text(MODELS, encoding="utf-8")
    sys.modules.pop("bad_models", None)
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    torch.save(state, "other.pth")
    whole = Path("other.pth").read_bytes()
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save(state, "old.pth", _use_new_zipfile_serialization=False)
    Path("cut_old.pth").write_bytes(Path("old.pth").read_bytes()[:30])
    torch.save([torch.ones(1)], "list.pth")
    torch.save({"epoch": 3}, "nothing.pth")
    torch.save(nn.Linear(1, 1), "object.pth")
    safetensors.save_file(
        {name: value.clone() for name, value in state.items()}, "other.safetensors"
    )
    Path("cut.safetensors").write_bytes(Path("other.safetensors").read_bytes()[:-9])
    Path("html.pth").write_text("<!DOCTYPE html>", encoding="utf-8")


def _write_odd_paths() -> None:
    for suffix in (".pth", ".onnx", ".json", ".zip", ".pt2", ".xml", ".safetensors", ".html"):
        Path(f"empty{suffix}").touch()
        Path(f"text{suffix}").write_text("no such thing\n" * 9, encoding="utf-8")
        Path(f"folder{suffix}").mkdir()
        os.mkfifo(f"pipe{suffix}")
        Path(f"device{suffix}").symlink_to("/dev/full")
        Path(f"loop{suffix}").symlink_to(f"loop{suffix}")
        Path(f"dangling{suffix}").symlink_to("gone")


def _write_data() -> None:
    for name, number in itertools.product(("cat", "dog", "emu"), range(4)):
        for top in ("data", "hole", "noise"):
            target = Path(top, name, f"{number}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_image(20 * number))
    shutil.rmtree("hole/emu")
    Path("hole/emu").mkdir()
    Path("noise/cat/0.png").write_bytes(b"no image")
    Path("flat").mkdir()
    Path("flat/1.png").write_bytes(_image(1))
    with zipfile.ZipFile("data.zip", "w") as archive:
        for file in Path("data").rglob("*.png"):
            archive.write(file)
    whole = Path("data.zip").read_bytes()
    Path("cut.zip").write_bytes(whole[: len(whole) // 2])
    Path("broken.zip").write_bytes(whole.replace(b"IDAT", b"IDAX"))


def _write_onnx() -> None:
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT

    def model(shape: list[int | str], *nodes: Any) -> Any:
        ends = [
            helper.make_tensor_value_info(name, float32, shape if name == "x" else None)
            for name in ("x", "y")
        ]
        graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    relu = helper.make_node("Relu", ["x"], ["y"])
    good = model([1, 3, 8, 8], relu)
    onnx.save(good, "good.onnx")
    Path("cut.onnx").write_bytes(good.SerializeToString()[:-7])
    onnx.save(model([1, 3, 8, 8], helper.make_node("Relu", ["z"], ["y"])), "unfed.onnx")
    onnx.save(model([1, 3, 8, 8], helper.make_node("Nonsense", ["x"], ["y"])), "unknown.onnx")


RESULTS = {
    "list": "[]",
    "number": "3",
    "nan": '{"schema": NaN}',
    "schema": '{"schema": "other"}',
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep_object": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "big": '{"schema": ' + "9" * 5000 + "}",
    "bytes": "\ufeff\x00",
    "fields": json.dumps({"schema": "reparam.results/2", "title": 3}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of good files and of bad ones, in which the commands run."""
    former, folder = Path.cwd(), tmp_path_factory.mktemp("bad")
    os.chdir(folder)
    _write_models()
    _write_odd_paths()
    _write_data()
    _write_onnx()
    for name, text in RESULTS.items():
        Path(f"{name}.json").write_text(text, encoding="utf-8")
    stored = to_json(Results(title="T", created="", models=()))
    Path("stored.json").write_text(stored, encoding="utf-8")
    Path("link.json").symlink_to("stored.json")
    Path("hard.html").hardlink_to("stored.json")
    for link, target in (("link", "other"), ("hard", "other")):
        for suffix in (".pth", ".safetensors"):
            path = Path(link + suffix)
            if link == "link":
                path.symlink_to(target + suffix)
            else:
                path.hardlink_to(target + suffix)
    Path("recipe.toml").write_text("epochs = 'many'\n", encoding="utf-8")
    yield folder
    os.chdir(former)


def _snapshot() -> dict[str, object]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(Path().rglob("*"))
        if "__pycache__" not in path.parts
    }


# ------------------------------------------------------------------------------------------- rows


WEIGHTS = [f"{kind}.pth" for kind in KINDS] + [
    "cut.pth", "cut_old.pth", "list.pth", "nothing.pth", "object.pth", "html.pth",
    "cut.safetensors", "text.safetensors", "other.pth", "other.safetensors",
]  # fmt: skip
FEW_WEIGHTS = ("missing.pth", "folder.pth", "pipe.pth", "cut.pth", "object.pth", "other.pth")
TAKES_WEIGHTS = (
    ("plan", NET, *SMALL, "-w"),
    ("fuse", NET, *SMALL, "-o", "new.safetensors", "-w"),
    ("verify", NET, NET, *SMALL, "-w"),
    ("verify", NET, NET, *SMALL, "--candidate-weights"),
    ("diff", NET, NET, *SMALL, "-w"),
    ("diff", NET, NET, *SMALL, "--candidate-weights"),
    ("bench", NET, *SMALL, "--engines", "eager", "-w"),
    ("prune", FUSED, *SMALL, "--macs", "0.5", "-o", "new.safetensors", "-w"),
    ("prune", FUSED, *SMALL, "--macs", "0.5", "-o", "new.safetensors", "--trained"),
    ("quantize", FUSED, "-d", "data", "-o", "new.onnx", "-w"),
    ("train", "-d", "data", "-m", NET, "-o", "run", "-w"),
)


def _with_weights() -> Iterator[tuple[str, ...]]:
    for number, line in enumerate(TAKES_WEIGHTS):
        for file in FEW_WEIGHTS if number else WEIGHTS:
            yield (*line, file)
        if line[-1] == "-w":
            yield (*line, "other.pth", "--key", "absent")
            yield (*line[:-1], "--key", "absent")
            yield (*line[:-1], "--no-strict")


OUTPUTS = {
    ("fuse", NET, *SMALL, "-w", "other.safetensors", "-o"): (
        "absent/new.onnx", "folder.onnx", "pipe.onnx", "device.onnx", "bad_models.py/new.onnx",
        "new", "new.xyz", "", ".", "other.safetensors", "./other.safetensors",
        "data/../other.safetensors", "link.safetensors", "hard.safetensors",
    ),
    ("prune", FUSED, *SMALL, "--macs", "0.5", "-w", "other.safetensors", "-o"): (
        "absent/new.onnx", "pipe.onnx", "new.xyz", "link.safetensors", "hard.safetensors",
    ),
    ("quantize", FUSED, "-d", "data", "-o"): (
        "absent/new.onnx", "folder.onnx", "pipe.onnx", "new.pt2", "device.xml", "data.zip",
    ),
    ("quantize", FUSED, "-d", "data", "-o", "new.onnx", "--report"): ("other.pth", "text.html"),
    ("prune", FUSED, *SMALL, "--macs", "0.5", "-o", "new.onnx", "--report"): ("absent/a.html",),
    ("diff", NET, NET, *SMALL, "--report"): (
        "absent/a.html", "text.html", "folder.html", "device.html", "new.json", "new",
    ),
    ("fuse", NET, *SMALL, "--certify", "-o"): ("new.mlpackage", "absent/new.onnx", "new"),
    ("fuse", "good.onnx", "--certify", "-o"): ("good.onnx", "new.pt2", "absent/new.onnx"),
    ("bench", NET, *SMALL, "--engines", "eager", "--rounds", "1", "-o"): (
        "absent/new.json", "folder.json", "pipe.json", "device.json", "new.html", "new",
    ),
    ("bench", NET, *SMALL, "--engines", "eager", "--pick", "-o"): (
        "absent/new", "new.onnx", "bad_models.py/new",
    ),
    ("report", "stored.json", "-o"): (
        "absent/a.html", "folder.html", "device.html", "hard.html", "stored.json", "link.json",
    ),
    ("report", "link.json", "-o"): ("stored.json",),
    ("fuse", "good.onnx", "-o"): (
        "good.onnx", "./good.onnx", "new.safetensors", "absent/new.onnx", "folder.onnx",
    ),
    ("train", "-d", "data", "-m", NET, "-o"): (
        "bad_models.py", "bad_models.py/run", "/dev/full", "pipe.pth", "data", "data/run",
    ),
    ("train", "-d", "data", "-m", NET, "-o", "run", "--export"): (
        "a/b.onnx", "new.xyz", "best.safetensors", "last.safetensors", "", "..",
    ),
    ("demo", "-o"): ("bad_models.py", "pipe.pth"),
}  # fmt: skip
SOURCES = [f"{kind}.zip" for kind in KINDS] + [
    "hole", "noise", "flat", "cut.zip", "broken.zip", "digit", "torchvision:NOPE", "torchvision:",
    "", "no-{0..3}.tar", "text.pth",
]  # fmt: skip
DATA = {
    ("train", "-m", NET, "-o", "run", "-d"): SOURCES,
    ("train", "-m", NET, "-o", "run", "-d", "data", "--validation"): (
        "missing", "flat", "hole", "cut.zip",
    ),
    # Three classes of data, ten of the net.
    ("train", "-m", FUSED, "-o", "run", "-d"): ("data",),
    ("train", "-m", NET, "-o", "run", "-d", "data", "--num-classes"): ("4",),
    ("quantize", FUSED, "-o", "new.onnx", "-d"): ("data", *SOURCES[::3]),
    ("prune", FUSED, "--macs", "0.5", "-o", "new.onnx", "-d"): ("data", *SOURCES[1::3]),
    ("quantize", FUSED, "-o", "new.onnx", "-d", "digits", "--num-classes"): ("10",),
    ("prune", FUSED, "--macs", "0.5", "-o", "n.onnx", "-d", "digits", "--num-classes"): ("10",),
}  # fmt: skip
NAMES = (
    "", ":", "repvgg_zz", "bad_models:", ":net", "bad_models:absent", "bad_models:number",
    "bad_models:none", "absent_module:net", "timm:nope", "torchvision:nope", "cut.pth",
    "bad-models:net", "missing.pt2",
)  # fmt: skip
FEW_NAMES = ("", ":", "repvgg_zz", "bad_models:absent", "missing.pt2")
MODELS_GIVEN = {
    ("plan", *SMALL): NAMES,
    ("fuse", *SMALL, "-o", "new.onnx"): FEW_NAMES,
    ("verify", *SMALL, NET): FEW_NAMES,
    ("diff", *SMALL, NET): FEW_NAMES,
    ("bench", *SMALL, "--engines", "eager"): FEW_NAMES,
    ("train", "-d", "data", "-o", "run", "-m"): FEW_NAMES,
    ("plan", *SMALL, "--num-classes", "3"): ("bad_models:built", FUSED),
    ("fuse", *SMALL, "-o", "new.onnx", "--num-classes", "3"): ("bad_models:built", FUSED),
    ("bench", *SMALL, "--engines", "eager", "--num-classes", "3"): ("bad_models:built", FUSED),
    ("plan", "--num-classes", "3"): ("good.onnx",),
    ("fuse", "-o", "new.onnx", "--num-classes", "3"): ("good.onnx",),
}
SHAPES = (
    "", "a", "1,3", "1,3,8,8,8", "1,3,0,8", "1,3,-1,8", "1,5,8,8", "1,3,8,8,", "1;3;8;8",
    "99999999999999999999,3,8,8", "1,3,1000000,1000000", "1.5,3,8,8",
)  # fmt: skip
FEW_SHAPES = ("a", "1,5,8,8", "99999999999999999999,3,8,8", "1,3,1000000,1000000")
SIZES = ("0", "-1", "1000000", "99999999999999999999", "x", "1.5", "1")
FEW_SIZES = ("0", "1000000", "1")
CLASSES = ("0", "x", "99999999999999")
_BENCH = ("bench", NET, *SMALL, "--engines", "eager")
_PRUNE = ("prune", FUSED, *SMALL, "-o", "new.onnx")
_TRAIN = ("train", "-d", "data", "-m", NET, "-o", "run")
_QUANTIZE = ("quantize", FUSED, "-d", "digits", "--size", "8", "-o", "new.onnx")
NUMBERS = {
    ("plan", NET, "--shape"): SHAPES,
    ("fuse", NET, "-o", "new.onnx", "--shape"): FEW_SHAPES,
    ("verify", NET, NET, "--shape"): FEW_SHAPES,
    ("diff", NET, NET, "--shape"): FEW_SHAPES,
    ("bench", NET, "--engines", "eager", "--shape"): FEW_SHAPES,
    ("plan", NET, "--input-size"): SIZES,
    ("fuse", NET, "-o", "new.onnx", "--input-size"): FEW_SIZES,
    ("verify", NET, NET, "--input-size"): FEW_SIZES,
    ("diff", NET, NET, "--input-size"): FEW_SIZES,
    ("bench", NET, "--engines", "eager", "--input-size"): FEW_SIZES,
    ("plan", NET, *SMALL, "--num-classes"): CLASSES,
    ("fuse", NET, *SMALL, "-o", "new.onnx", "--num-classes"): CLASSES,
    (*_TRAIN, "--size"): ("0", "-1", "1000000", "1", "x"),
    ("quantize", FUSED, "-d", "data", "-o", "new.onnx", "--size"): ("0", "1000000", "1"),
    (*_QUANTIZE, "--mean"): ("0.5,0.5,0.5",),
    (*_QUANTIZE, "--std", "0.5,0.5,0.5", "--mean"): ("0.5", "x", "2,2,2"),
    (*_QUANTIZE, "--mean", "0.5,0.5,0.5", "--std"): ("0,0,0", "nan,1,1"),
    (*_BENCH, "--threads"): ("0", "-1", "5000", "100000", "x", "", "1,x"),
    (*_BENCH, "--batches"): ("0", "-1", "x", "", "99999999999999"),
    (*_BENCH, "--rounds"): ("0", "x"),
    (*_BENCH, "--seconds"): ("0", "-1", "x", "nan", "inf"),
    (*_BENCH, "--precisions"): ("fp8", ""),
    (*_BENCH, "--forms"): ("both", ","),
    ("bench", NET, *SMALL, "--engines"): ("nope", ",", ""),
    (*_PRUNE, "--macs"): ("0", "-1", "nan", "inf", "x", "1.5"),
    (*_PRUNE, "--latency"): ("0", "-1ms", "x", "nan", ""),
    (*_PRUNE, "--macs", "0.5", "--multiple"): ("0",),
    (*_PRUNE, "--macs", "0.5", "--threads"): ("0", "100000"),
    (*_PRUNE, "--macs", "0.5", "--importance"): ("nope", "bn_scale", "first_order"),
    (*_PRUNE, "--macs", "0.5", "--keep"): ("absent",),
    (*_PRUNE, "--macs", "0.5", "--engine"): ("nope",),
    (*_PRUNE, "--macs", "0.5", "--validation"): ("data",),
    (*_QUANTIZE, "--samples"): ("0", "x"),
    (*_QUANTIZE, "--weight-bits"): ("0", "3", "99", "x"),
    (*_QUANTIZE, "--max-drop"): ("nan", "x"),
    (*_QUANTIZE, "--keep-float"): ("-1",),
    (*_QUANTIZE, "--engine"): ("nope", "openvino"),
    (*_TRAIN, "--epochs"): ("0", "x"),
    (*_TRAIN, "--batch-size"): ("0", "x"),
    (*_TRAIN, "--seed"): ("-1", "99999999999999999999"),
    (*_TRAIN, "--workers"): ("-1", "100000"),
    (*_TRAIN, "--devices"): ("0", "5000"),
    (*_TRAIN, "--recipe"): ("nope", "recipe.toml", "missing.toml", "text.pth", "folder.pth"),
    (*_TRAIN, "--set"): ("x", "=3", "epochs=x", "optimizer.learning_rate=nan", "nope=1"),
    (*_TRAIN, "--branch"): ("nope",),
    (*_TRAIN, "--deploy"): ("first",),
    (*_TRAIN, "--precision"): ("fp8", "fp16"),
    (*_TRAIN, "--accelerator"): ("tpu", "cuda"),
}
_ONNX = [f"{kind}.onnx" for kind in (*KINDS, "cut", "unfed", "unknown")]
_READ = [f"{kind}{end}" for kind in KINDS for end in (".onnx", ".pt2", ".safetensors", ".xml")]
FILES = {
    ("plan",): _ONNX,
    ("fuse", "-o", "new.onnx"): _ONNX,
    ("verify", "good.onnx"): [*_ONNX, NET],
    ("diff", "good.onnx"): _ONNX,
    ("diff", NET, *SMALL): [f"{kind}{suffix}" for kind in KINDS for suffix in (".pt2", ".xyz")],
    ("diff", NET, "--size", "32"): ("good.onnx",),
    ("diff", "good.onnx", "--explain"): (NET, "missing.onnx", "text.onnx"),
    ("read",): [NET, "data", "other.pth", "cut.safetensors", "cut.onnx", "", *_READ],
    ("fuse", "-o", "new.onnx", "--certify"): ("cut.onnx", "unknown.onnx", "missing.pt2"),
    ("bench", "--engines", "onnxruntime"): _ONNX,
    ("bench", "good.onnx", "--engines", "onnxruntime", "--size"): ("32",),
    ("verify", NET, *SMALL): [
        f"{kind}{suffix}" for kind in KINDS for suffix in (".pt2", ".xml", ".xyz")
    ],
    ("verify", NET, "--size", "32"): ("good.onnx",),
    ("bench", *SMALL, "--engines", "eager"): [f"{kind}.pt2" for kind in KINDS],
    ("report",): [f"{name}.json" for name in (*KINDS, *RESULTS)],
    ("report", "stored.json", "-o", "new.html"): ("missing.json", "pipe.json", "list.json"),
}


def _rows() -> Iterator[tuple[str, ...]]:
    yield from _with_weights()
    for table in (OUTPUTS, DATA, MODELS_GIVEN, NUMBERS, FILES):
        for line, values in table.items():
            yield from ((*line, value) for value in values)


TABLE = list(dict.fromkeys(_rows()))


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 300


@pytest.mark.filterwarnings("ignore")  # a command shows what others warn of, or not
@pytest.mark.parametrize("line", TABLE, ids=" ".join)
def test_bad_input_changes_nothing_and_is_exit_code_2(line: tuple[str, ...], place: Path) -> None:
    del place
    before = _snapshot()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(line)
    told = err.getvalue()
    assert code == 2, told
    assert told
    assert "Traceback" not in told + out.getvalue()
    assert _snapshot() == before
