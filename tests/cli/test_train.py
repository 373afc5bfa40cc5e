"""train: from data to a fused, compared and exported net, on the command line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import reparam
from reparam.cli import small
from reparam.models import resolve

for _package in ("typer", "rich", "lightning", "sklearn"):
    pytest.importorskip(_package)

SHORT = ("--data", "digits", "--size", "8", "--epochs", "1", "--accelerator", "cpu")
NO_ENGINE = ("--export", "deploy.safetensors")


def test_a_run_ends_fused_compared_and_exported(reparam_command, tiny: str) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    ran = reparam_command("train", *SHORT, "--model", f"{tiny}:classifier", "--out", "run")
    assert ran.code == 0, ran.err
    assert f"Trained {tiny}:classifier on digits" in ran.out
    assert "Fused: 3 regions" in ran.out
    assert "the same class on 179 of 179 validation images" in ran.out
    assert "Wrote run/deploy.onnx" in ran.out
    assert "epoch   1 of 1: loss" in ran.err
    assert {path.name for path in Path("run").iterdir()} >= {
        "best.safetensors", "deploy.json", "deploy.onnx", "deploy.safetensors", "epochs.csv",
        "last.safetensors", "result.json", "resume.ckpt",
    }  # fmt: skip


WIDE = """
from torch import nn
from reparam.models import RepVGG, RepVGGSpec

def classifier(num_classes=10):
    spec = RepVGGSpec(depths=(2,), widths=(32,), stem_width=16, stem_stride=1, strides=2)
    return RepVGG(spec, num_classes=num_classes)

def straight(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))
"""


@pytest.mark.parametrize("branch", [None, "repvgg"])
def test_every_command_that_is_printed_works_as_printed(
    reparam_command, tiny: str, branch: str | None
) -> None:
    for package in ("onnxruntime", "onnxscript", "jinja2", "torch_pruning"):
        pytest.importorskip(package)
    _write_images(Path("my images"))
    Path(f"wide_{tiny}.py").write_text(WIDE, encoding="utf-8")
    model = f"wide_{tiny}:{'classifier' if branch is None else 'straight'}"
    widen = () if branch is None else ("--branch", branch)
    first = ("train", "--data", "my images", "--epochs", "1", "--batch-size", "16", "-m", model)
    waiting = [(*first, "--out", "a run", *widen)]
    done: list[str] = []
    while waiting:
        line = waiting.pop(0)
        ran = reparam_command(*line)
        assert ran.code == 0, (line, ran.err)
        done.append(line[0])
        told = [text for text in ran.out.splitlines() if text.startswith("Next: reparam ")]
        for text in told:
            command = tuple(shlex.split(text.removeprefix("Next: reparam ")))
            if command[0] not in done and command[0] not in {each[0] for each in waiting}:
                waiting.append(command)
    assert {"train", "quantize", "prune", "bench", "report"} <= set(done)


def test_a_count_of_classes_that_nobody_takes_is_refused(reparam_command, tiny: str) -> None:
    line = ("train", *SHORT, "-m", f"{tiny}:net", "-o", "run", "--num-classes", "10")
    ran = reparam_command(*line)
    assert ran.code == 2
    assert "num_classes" in ran.err


def _write_images(folder: Path) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    for label, name in enumerate(("cat", "dog", "emu")):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (16, 16), (80 * label, 7 * number, 0)).save(
                folder / name / f"{number}.png"
            )


def test_settings_reach_the_recipe_and_json_tells_all(reparam_command, tiny: str) -> None:
    ran = reparam_command(
        "train", *SHORT, *NO_ENGINE, "-m", f"{tiny}:classifier", "-o", "run", "--batch-size", "32",
        "--set", "optimizer.learning_rate=0.01", "--set", "optimizer.kind=adamw", "--seed", "7",
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    training = ran.json["training"]
    assert training["recipe"]["optimizer"]["learning_rate"] == 0.01
    assert training["recipe"]["optimizer"]["kind"] == "adamw"
    assert (training["recipe"]["batch_size"], training["recipe"]["epochs"]) == (32, 1)
    assert training["seed"] == 7
    assert ran.json["deployment"]["predictions_different"] == 0
    assert ran.json["deployment"]["exports"][0]["path"] == "deploy.safetensors"


def test_without_a_model_small_images_get_a_small_net(reparam_command) -> None:
    ran = reparam_command("train", *SHORT, *NO_ENGINE, "--batch-size", "512", "-o", "run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["model"] == small.NAME
    fresh = resolve(small.NAME, num_classes=10)
    assert load_file("run/best.safetensors").keys() == fresh.state_dict().keys()


def test_a_recipe_names_the_net_it_was_made_for(reparam_command) -> None:
    Path("mine.toml").write_text(
        'model = "reparam.models:fastnet"\nepochs = 1\nbatch_size = 1250\n'
    )
    ran = reparam_command(
        "train", "--data", "digits", "--recipe", "mine.toml", *NO_ENGINE, "--accelerator", "cpu"
    )
    assert ran.code == 0, ran.err
    assert "Trained reparam.models:fastnet on digits" in ran.out


@pytest.mark.parametrize("kind", ["repvgg", "mobileone"])
def test_a_plain_net_is_widened_and_ends_plain(reparam_command, tiny: str, kind: str) -> None:
    ran = reparam_command(
        "train", *SHORT, *NO_ENGINE, "-m", f"{tiny}:straight", "--branch", kind, "-o", "run"
    )
    assert ran.code == 0, ran.err
    assert f"with {kind} branches" in ran.out
    wide, deployed = load_file("run/last.safetensors"), load_file("run/deploy.safetensors")
    assert len(wide) > len(deployed)
    plain = resolve(f"{tiny}:straight", num_classes=10)
    convolution = next(m for m in plain.modules() if isinstance(m, torch.nn.Conv2d))
    kernels = [value for value in deployed.values() if value.dim() == 4]
    assert [k.shape for k in kernels] == [convolution.weight.shape]


def test_an_earlier_run_is_gone_on_with_and_never_written_over(reparam_command, tiny: str) -> None:
    line = ("train", *SHORT, *NO_ENGINE, "-m", f"{tiny}:classifier", "-o", "run")
    assert reparam_command(*line).code == 0
    before = Path("run/last.safetensors").read_bytes()
    refused = reparam_command(*line)
    assert refused.code == 2
    assert "holds an earlier run; go on with it (--resume)" in refused.err
    assert Path("run/last.safetensors").read_bytes() == before
    resumed = reparam_command(*line, "--resume")
    assert resumed.code == 0, resumed.err
    history = json.loads(Path("run/result.json").read_text(encoding="utf-8"))["history"]
    assert [record["epoch"] for record in history] == [1]


def test_a_checkpoint_is_where_a_run_begins(reparam_command, tiny: str) -> None:
    torch.save({"nonsense": torch.zeros(1)}, "other.pth")
    line = ("train", *SHORT, *NO_ENGINE, "-m", f"{tiny}:classifier", "-o", "run")
    ran = reparam_command(*line, "--weights", "other.pth")
    assert ran.code == 2
    assert "other.pth" in ran.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--data", "absent.zip"), "there is no data at 'absent.zip'"),
        (("--data", "digits", "-m", "repvgg_zz"), "there is no model 'repvgg_zz'"),
        (("--data", "digits", "-m", "{tiny}:net"), "needed (2, 10)"),
        (("--data", "digits", "-m", "{tiny}:broken_name"), "defines no 'broken_name'"),
        (("--data", "digits", "--recipe", "digit"), "did you mean 'digits'?"),
        (("--data", "digits", "--branch", "vgg"), "is no kind; give repvgg, acnet"),
        (("--data", "digits", "--set", "epochs"), "give NAME=VALUE"),
        (("--data", "digits", "--set", "optimizer.rate=1"), "rate"),
        (("--data", "digits", "--export", "net.xyz"), "names no format"),
        (("--data", "digits", "--export", "there/net.onnx"), "give a file name"),
        (("--data", "digits", "--accelerator", "tpu"), "is unknown; give one of auto, cpu"),
        (("--data", "digits", "--precision", "fp8"), "precision"),
        (("--data", "digits", "--no-online", "--online-compile"), "leave one of them out"),
        (("--data", "digits", "--size", "65"), "give --model"),
        (("--data", "digits", "--out", "file/below"), "cannot be made"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[2:] or value),
)
def test_bad_input_is_one_message_and_exit_code_2(
    reparam_command, tiny: str, line: tuple[str, ...], message: str
) -> None:
    Path("file").write_text("in the way", encoding="utf-8")
    ran = reparam_command("train", *(part.format(tiny=tiny) for part in line))
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert not Path("reparam-run").exists()


def test_a_run_that_is_terminated_says_so_and_can_go_on(tiny: str, folder: Path) -> None:
    source = str(Path(reparam.__file__).parents[1])
    ran = subprocess.Popen(
        [sys.executable, "-m", "reparam", "train", "--data", "digits", "-m", f"{tiny}:classifier",
         "-o", "run", "--epochs", "500"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.stderr is not None
    next(line for line in ran.stderr if "epoch" in line)
    ran.terminate()
    _, told = ran.communicate(timeout=120)
    assert ran.returncode == 128 + signal.SIGTERM
    assert "--resume" in told


@pytest.mark.slow
def test_two_processes_make_one_run_and_one_report(tiny: str, folder: Path) -> None:
    source = Path(reparam.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-m", "reparam", "train", *SHORT, *NO_ENGINE, "-m", f"{tiny}:classifier",
         "-o", "run", "--devices", "2", "--json"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["deployment"]["predictions_different"] == 0
    assert ran.stderr.count("epoch   1 of 1") == 1
