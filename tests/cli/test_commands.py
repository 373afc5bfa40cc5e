"""plan, fuse and verify, as a person and as a program use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import reparam
from reparam import __version__
from reparam.fusing import Plan
from reparam.models import resolve
from reparam.report import Results, to_json

pytest.importorskip("typer")
pytest.importorskip("rich")


def test_version(reparam_command) -> None:
    ran = reparam_command("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"reparam {__version__}\n", "")


def test_help_names_the_commands(reparam_command) -> None:
    ran = reparam_command("--help")
    assert ran.code == 0
    for command in ("demo", "plan", "fuse", "verify", "train", "bench", "report"):
        assert f"  {command} " in ran.out


def test_plan_is_a_table_and_says_what_next(reparam_command, tiny: str) -> None:
    ran = reparam_command("plan", f"{tiny}:net", "--input-size", "8")
    assert ran.code == 0
    assert ran.out.startswith("3 regions fold")
    assert f"Next: reparam fuse {tiny}:net --input-size 8 -o net.onnx" in ran.out
    assert ran.err == ""
    every = reparam_command("plan", f"{tiny}:net", "--input-size", "8", "--all")
    assert "stages.0.1.branches" in every.out


def test_plan_as_json_is_the_plan(reparam_command, tiny: str) -> None:
    ran = reparam_command("plan", f"{tiny}:net", "--input-size", "8", "--json")
    assert [region["where"] for region in ran.json["regions"]] == [
        "stem.branches",
        "stages.0.0.branches",
        "stages.0.1.branches",
    ]
    assert ran.json["refusals"] == []


def test_a_part_is_planned_and_fused(reparam_command, tiny: str) -> None:
    chosen = ("--where", "stem", "--where", "stages.0.1*")
    ran = reparam_command("plan", f"{tiny}:net", "--input-size", "8", *chosen)
    assert ran.code == 0
    assert f"reparam fuse {tiny}:net --input-size 8 --where stem --where 'stages.0.1*'" in ran.out
    out = ("-o", "net.onnx", "--input-size", "8", "--json")
    ran = reparam_command("fuse", f"{tiny}:net", *chosen, *out)
    assert ran.code == 0, ran.err
    places = [region["where"] for region in ran.json["plan"]["regions"]]
    assert places == ["stem.branches", "stages.0.1.branches"]
    whole = reparam_command("fuse", "net.onnx", "-o", "whole.onnx", "--json").json["plan"]
    assert len(whole["regions"]) == 1
    part = ("--where", "no such thing", "-o", "none.onnx")
    for model in ("net.onnx", f"{tiny}:net"):
        ran = reparam_command("fuse", model, *part)
        assert ran.code == 2
        assert "no such thing" in ran.err
    assert not Path("none.onnx").exists()


def test_results_are_kept_and_inputs_fixed(reparam_command, tiny: str) -> None:
    np.save("task.npy", np.float32([[0.5, -1.0]]))
    asked = ("--outputs", "main", "--fix", "task=task.npy", "--fix", "sharp=true")
    ran = reparam_command("plan", f"{tiny}:steered", "--input-size", "8", *asked)
    assert ran.code == 0, ran.err
    assert f"fuse {tiny}:steered --input-size 8 {' '.join(asked)} -o" in ran.out
    ran = reparam_command(
        "fuse", f"{tiny}:steered", "--size", "8", *asked, "-o", "s.onnx", "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.json["before"]["batch_norms"] == 1
    assert ran.json["after"]["batch_norms"] == 0
    assert ran.json["after"]["parameters"] == 3 * 4 * 9 + 4 + 4 * 3 + 3
    assert len(ran.json["plan"]["notes"]) == 2
    told = reparam_command("fuse", f"{tiny}:steered", "--size", "8", *asked, "-o", "s.pt2")
    assert told.code == 0, told.err
    assert "steer, aux" in told.out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--outputs", "mian"), "main"),
        (("--fix", "task"), "names no value"),
        (("--fix", "task=absent.npy"), "absent.npy"),
        (("--fix", "task=bad.npy"), "bad.npy"),
        (("--fix", "task=1e"), "no value"),
        (("--fix", "sharp=true", "--fix", "sharp=false"), "second"),
        (("--fix", "shrap=true"), "sharp"),
    ],
)
def test_what_cannot_be_kept_or_fixed_is_one_line(asked, message, reparam_command, tiny) -> None:
    np.save("task.npy", np.float32([[0.5, -1.0]]))
    Path("bad.npy").write_bytes(b"\x93NUMPY no array")
    task = () if "task" in asked[1] else ("--fix", "task=task.npy")
    for command in (("plan",), ("fuse", "-o", "s.onnx")):
        ran = reparam_command(*command, f"{tiny}:steered", "--size", "8", *task, *asked)
        assert ran.code == 2
        assert ran.out == ""
        assert message in ran.err
    assert not Path("s.onnx").exists()


def test_weights_of_the_fused_net_fit_its_name(reparam_command, tiny: str) -> None:
    line = ("fuse", f"{tiny}:net", "--input-size", "8", "-o")
    assert reparam_command(*line, "net.safetensors").code == 0
    given = ("--input-size", "8", "-w", "net.safetensors")
    ran = reparam_command("fuse", f"{tiny}:net", *given, "-o", "net.onnx", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["plan"]["regions"] == []
    assert reparam_command("verify", f"{tiny}:net", "net.onnx", *given).code == 0
    once = ("--engines", "eager", "--rounds", "1", "--threads", "1")
    assert reparam_command("bench", f"{tiny}:net", *given, *once).code == 0
    refused = reparam_command("plan", f"{tiny}:plain", "--shape", "1,4", *given[2:])
    assert refused.code == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".pt2"])
def test_fused_file_is_written_and_verifies(reparam_command, tiny: str, suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    out = f"net{suffix}"
    fused = reparam_command("fuse", f"{tiny}:net", "-o", out, "--input-size", "8")
    assert fused.code == 0, fused.err
    assert Path(out).is_file()
    assert f"Wrote {out}" in fused.out
    assert f"Next: reparam verify {tiny}:net {out} --input-size 8" in fused.out
    checked = reparam_command("verify", f"{tiny}:net", out, "--input-size", "8")
    assert checked.code == 0, checked.err
    assert f"{out} is equal to {tiny}:net" in checked.out


def test_fuse_as_json_counts_what_is_left(reparam_command, tiny: str) -> None:
    ran = reparam_command(
        "fuse", f"{tiny}:net", "-o", "net.safetensors", "--input-size", "8", "--json"
    )
    assert ran.json["before"]["convolutions"] == 6
    assert ran.json["before"]["batch_norms"] == 8
    assert ran.json["after"]["convolutions"] == 3
    assert ran.json["after"]["batch_norms"] == 0
    assert ran.json["verdict"]["ok"] is True
    assert ran.json["export"]["path"] == "net.safetensors"


def test_weights_are_loaded(reparam_command, tiny: str, folder: Path) -> None:
    torch.manual_seed(7)
    model = resolve(f"{tiny}:net")
    torch.save(model.state_dict(), folder / "trained.pth")
    line = ("fuse", f"{tiny}:net", "-w", "trained.pth", "-o", "a.safetensors", "--input-size", "8")
    assert reparam_command(*line).code == 0
    plain = reparam_command("verify", f"{tiny}:net", "a.safetensors", "--input-size", "8")
    trained = reparam_command(
        "verify", f"{tiny}:net", "a.safetensors", "--input-size", "8", "-w", "trained.pth"
    )
    assert plain.code == 1
    assert trained.code == 0, trained.err


def test_different_models_fail_with_both_numbers(reparam_command, tiny: str, folder: Path) -> None:
    torch.manual_seed(7)
    torch.save(resolve(f"{tiny}:other").state_dict(), folder / "other.pth")
    ran = reparam_command(
        "verify", f"{tiny}:net", f"{tiny}:other", "--candidate-weights", "other.pth",
        "--input-size", "8",
    )  # fmt: skip
    assert ran.code == 1
    assert ran.out == ""
    assert "the two models differ: largest difference" in ran.err


def test_a_wrong_fold_is_not_written(
    reparam_command, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Plan.apply

    def wrong(plan: Plan) -> torch.nn.Module:
        fused = right(plan)
        with torch.no_grad():
            next(fused.parameters()).add_(1e-3)
        return fused

    monkeypatch.setattr(Plan, "apply", wrong)
    ran = reparam_command("fuse", f"{tiny}:net", "-o", "net.safetensors", "--input-size", "8")
    assert ran.code == 1
    assert "differ" in ran.err
    assert not Path("net.safetensors").exists()


def test_shapes_that_cannot_vary_are_one_message_and_can_be_fixed(
    reparam_command, tiny: str, folder: Path
) -> None:
    pytest.importorskip("onnxruntime")
    line = ("fuse", f"{tiny}:stiff", "--input-size", "8", "-o", "stiff.onnx")
    before = set(folder.iterdir())
    ran = reparam_command(*line)
    assert ran.code == 2, ran.err
    assert "variable batch" in ran.err
    assert "; --fixed-shapes exports" in ran.err
    assert "TORCH_LOGS" not in ran.err
    assert set(folder.iterdir()) == before
    assert reparam_command(*line, "--fixed-shapes").code == 0
    assert Path("stiff.onnx").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("plan", "repvgg_zz"), "there is no model 'repvgg_zz'"),
        (("plan", "{tiny}:absent"), "defines no 'absent'"),
        (("plan", "{tiny}:net", "--weights", "absent.pth"), "absent.pth"),
        (("plan", "{tiny}:net", "--shape", "1,a"), "is not a shape"),
        (("plan", "{tiny}:net", "--shape", "1,5,8,8"), "does not run on an input of shape 1x5x8x8"),
        (("plan", "{tiny}:plain"), "give it with --shape"),
        (("fuse", "{tiny}:net", "-o", "net.xyz"), "names no format; use one of: .safetensors"),
        (("fuse", "{tiny}:net", "-o", "absent/net.onnx"), "does not exist; create that folder"),
        (("fuse", "{tiny}:net", "-o", "net.onnx", "--backend", "x"), "has no backend 'x'"),
        (("verify", "{tiny}:net", "absent.onnx", "--input-size", "8"), "there is no file absent"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_message_and_exit_code_2(
    reparam_command, tiny: str, line: tuple[str, ...], message: str
) -> None:
    ran = reparam_command(*(part.format(tiny=tiny) for part in line))
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err
    assert ran.err.startswith("reparam: ")
    assert "Traceback" not in ran.err


def test_a_plan_leaves_a_page_with_the_net_as_a_column(reparam_command, tiny: str) -> None:
    pytest.importorskip("jinja2")
    ran = reparam_command("plan", f"{tiny}:net", "--report", "plan.html")
    assert ran.code == 0, ran.err
    page = Path("plan.html").read_text(encoding="utf-8")
    assert 'class="column"' in page
    assert "plan.html" in ran.out
    kept = Path("plan.json").read_bytes()
    assert reparam_command("report", "plan.json", "-o", "again.html").code == 0
    assert reparam_command("plan", f"{tiny}:net", "--report", "plan.txt").code == 2
    assert Path("plan.json").read_bytes() == kept
    ran = reparam_command("plan", f"{tiny}:net", "--report", "plan.html", "--json")
    assert json.loads(ran.out)["regions"]


def test_report_draws_stored_results(reparam_command, folder: Path) -> None:
    pytest.importorskip("jinja2")
    stored = to_json(Results(title="Stored", created="", models=()))
    (folder / "results.json").write_text(stored, encoding="utf-8")
    ran = reparam_command("report", "results.json")
    assert ran.code == 0, ran.err
    assert "Stored" in (folder / "results.html").read_text(encoding="utf-8")
    assert reparam_command("report", "absent.json").code == 2


@pytest.mark.parametrize("line", [("nonsense",), ("plan",), ("fuse", "repvgg_a0")])
def test_bad_usage_is_exit_code_2(reparam_command, line: tuple[str, ...]) -> None:
    ran = reparam_command(*line)
    assert ran.code == 2
    assert "Usage:" in ran.err


def test_a_fault_is_told_without_traceback_unless_asked(
    reparam_command, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("plan", f"{tiny}:broken")
    ran = reparam_command(*line)
    assert ran.code == 70
    assert "a fault in the user's code" in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in reparam_command(*line, "--debug").err
    monkeypatch.setenv("REPARAM_DEBUG", "1")
    assert "Traceback" in reparam_command(*line).err


def test_output_without_terminal_is_plain_and_narrow(reparam_command, tiny: str) -> None:
    ran = reparam_command("fuse", f"{tiny}:net", "-o", "n.safetensors", "--input-size", "8")
    assert "\x1b" not in ran.out + ran.err
    assert ran.err == ""
    table = [line for line in ran.out.splitlines() if line.startswith("  ")]
    assert max(map(len, table)) <= 80


def test_a_terminal_without_unicode_is_served(tiny: str, folder: Path) -> None:
    source = Path(reparam.__file__).parents[1]
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "reparam",
            "verify",
            f"{tiny}:net",
            f"{tiny}:net",
            "--input-size",
            "8",
        ],
        capture_output=True,
        cwd=folder,
        check=False,
        env=os.environ | {"PYTHONPATH": str(source), "PYTHONIOENCODING": "ascii"},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(b"+ ")


def test_without_typer_the_message_says_how_to_get_it() -> None:
    script = (
        "import sys; sys.modules['typer'] = None\n"
        "from reparam.cli import main\n"
        "sys.exit(main(['--version']))"
    )
    source = Path(reparam.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(source)},
    )
    assert ran.returncode == 2
    assert "pip install 'reparam[cli]'" in ran.stderr
    assert "Traceback" not in ran.stderr
