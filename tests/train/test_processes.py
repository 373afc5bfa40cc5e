"""Two processes on one machine train as one does with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import training_child

RECIPE = {
    "epochs": 2,
    "accumulate": 2,
    "augment__flip": "random",
    "augment__translate": 1,
    "ema__decay": 0.9,
}


def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    # Without BN: its statistics are each process's own unless SyncBN joins them, which needs GPUs.
    options = {"recipe": RECIPE, "normalised": False, "save_every_steps": 4}
    training_child.main(str(one), options)

    source = str(Path(__file__).parents[2] / "src")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    child = [training_child.__file__, str(two), json.dumps({**options, "devices": 2})]
    done = subprocess.run(
        [sys.executable, *launcher, *child],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    expected = json.loads((one / "records.json").read_text())
    found = json.loads((two / "records.json").read_text())
    assert len(found) == len(expected) == 2
    for one_record, two_record in zip(expected, found, strict=True):
        # float32 sums in another order, over 38 steps
        assert two_record["train_loss"] == pytest.approx(one_record["train_loss"], rel=1e-4)
        assert two_record["validation_loss"] == pytest.approx(
            one_record["validation_loss"], rel=1e-4
        )
        assert two_record["validation_accuracy"] == one_record["validation_accuracy"]
    weights = load_file(two / "last.safetensors")
    for name, tensor in load_file(one / "last.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)
