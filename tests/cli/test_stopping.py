"""What commands leave behind when they are stopped in the middle of their work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import reparam

pytest.importorskip("typer")
pytest.importorskip("rich")

MODULE = """
import os, signal
import torch
from torch import nn

LEFT = [int(os.environ["CALLS"])]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    def forward(self, x):
        if type(x) is torch.Tensor and not x.is_meta:
            LEFT[0] -= 1
            if LEFT[0] < 0:
                os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        return self.head(self.norm(self.conv(x)).relu())

def net():
    return Net()
"""

LINES = {
    "fuse": ("fuse", "stopped:net", "--size", "8", "-o", "net.onnx"),
    "prune": ("prune", "stopped:net", "--data", "digits", "-o", "pruned.safetensors"),
    "quantize": ("quantize", "stopped:net", "--data", "digits", "-o", "net.xml"),
    "bench": ("bench", "stopped:net", "--size", "8", "--engines", "eager", "-o", "times.json"),
}


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("line", LINES)
def test_a_command_that_is_stopped_leaves_nothing(line: str, name: int, tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text(MODULE, encoding="utf-8")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = sorted(tmp_path.iterdir())
    ran = subprocess.run(
        [sys.executable, "-B", "-m", "reparam", *LINES[line]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(reparam.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(temporary),
            "SIGNAL": str(int(name)),
            "CALLS": "1",
        },
    )
    assert ran.returncode == 128 + name, ran.stderr
    assert "Traceback" not in ran.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert not list(temporary.glob("*reparam*"))  # torch and the engines have folders of their own
