"""A run that is killed in mid-epoch and resumed ends as an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import training_child
from reparam.errors import CheckpointError


def run_until_killed(out: Path, **options: Any) -> None:
    command = [sys.executable, training_child.__file__, str(out), json.dumps(options)]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


CASES = {
    "plain, killed in mid-epoch": ({"epochs": 3}, [2, 12]),
    "everything that draws or remembers": (
        {
            "epochs": 3,
            "batch_size": 128,
            "accumulate": 2,
            "ema__decay": 0.9,
            "ema__every": 3,
            "augment__flip": "random",
            "augment__translate": 1,
            "augment__cutout": 2,
            "augment__mixup": 0.2,
            "augment__cutmix": 1.0,
            "augment__resized_crop": 0.5,
        },
        [2, 11],
    ),
    "killed in the first epoch, AdamW": (
        {"epochs": 2, "optimizer__kind": "adamw", "optimizer__learning_rate": 1e-3},
        [1, 9],
    ),
    "killed before the end of an epoch is saved": ({"epochs": 3}, [2, "end"]),
    "killed in the first batch after an epoch": ({"epochs": 3}, [3, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_uninterrupted(case: str, tmp_path: Path) -> None:
    recipe, kill_at = CASES[case]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training_child.main(str(whole), {"recipe": recipe})

    run_until_killed(broken, recipe=recipe, save_every_steps=4, kill_at=kill_at)
    assert not (broken / "last.safetensors").exists()
    training_child.main(str(broken), {"recipe": recipe, "save_every_steps": 4, "resume": True})

    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(whole / name), load_file(broken / name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), key
    assert (whole / "records.json").read_text() == (broken / "records.json").read_text()
    rows = (broken / "epochs.csv").read_text().splitlines()
    assert len(rows) == recipe["epochs"] + 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    training_child.main(str(out), {"recipe": {"epochs": 1}})
    return out


def test_resuming_a_finished_run_returns_its_result(finished: Path) -> None:
    before = load_file(finished / "last.safetensors")
    records = (finished / "records.json").read_text()
    training_child.main(str(finished), {"recipe": {"epochs": 1}, "resume": True})
    after = load_file(finished / "last.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (finished / "records.json").read_text() == records


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": {"epochs": 2}}, "recipe"),
        ({"recipe": {"epochs": 1}, "normalised": False}, "model"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    finished: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"of another run: its .*{named}"):
        training_child.main(str(finished), {**change, "resume": True})


def test_a_broken_checkpoint_is_named(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "resume.ckpt").read_bytes()
    (tmp_path / "resume.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"resume\.ckpt cannot be resumed from"):
        training_child.main(str(tmp_path), {"recipe": {"epochs": 1}, "resume": True})
