"""The command line, run inside the test's own process in an empty folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reparam.cli import main

TINY = """
from torch import nn
from reparam.models import RepVGG, RepVGGSpec

def net():
    spec = RepVGGSpec(depths=(2,), widths=(4,), stem_width=4, stem_stride=1, strides=1)
    return RepVGG(spec, num_classes=3)

def other():
    return net()

def classifier(num_classes=10):
    spec = RepVGGSpec(depths=(2,), widths=(4,), stem_width=4, stem_stride=1, strides=2)
    return RepVGG(spec, num_classes=num_classes)

def straight(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))

class Stiff(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.norm(self.conv(x)).mean((2, 3))
        return y if x.shape[0] <= 2 else y.flatten().reshape(-1, 4)

def stiff():
    return Stiff()

class Steered(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.steer, self.main, self.aux = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(4, 5)

    def forward(self, x, task, *, sharp=False):
        y = (self.body(x) * self.steer(task)[:, :, None, None]).relu().mean((2, 3))
        return {"main": self.main(y) * (2 if sharp else 1), "aux": [self.aux(y)]}

def steered():
    return Steered()

def broken():
    raise KeyError("a fault in the user's code")
"""


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of small models in it."""
    name = f"tiny_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(TINY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("REPARAM_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def tiny(folder: Path) -> str:
    """The name of that module."""
    return next(folder.glob("tiny_*.py")).stem


@pytest.fixture
def reparam_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line, returns what it left."""
    del folder

    def run(*arguments: str) -> Ran:
        code = main(arguments)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
