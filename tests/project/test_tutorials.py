"""The tutorials run as they stand, cell by cell, on the small data that they make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NEEDS = {
    "first-fold": ("timm", "onnxruntime", "onnxscript"),
    "int8": ("onnxruntime", "onnxscript"),
    "own-block": (),
    "prune-and-branch": ("lightning", "torch_pruning", "sklearn"),
    "train-and-deploy": ("lightning", "onnxruntime", "onnxscript", "PIL", "torchvision"),
}
# What training and exporting libraries warn of is tested where they are used.
pytestmark = pytest.mark.filterwarnings("ignore")


def cells(page: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_every_tutorial_is_run_and_on_the_site() -> None:
    assert {page.stem for page in TUTORIALS} == set(NEEDS)
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"tutorials/{page.name}" in site for page in TUTORIALS)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorial_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS[page.stem]:
        pytest.importorskip(package)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "tutorial"}
    found = cells(page)
    assert len(found) > 3
    for number, cell in enumerate(found, 1):
        exec(compile(cell, f"{page.name}, cell {number}", "exec"), names)  # noqa: S102 - our own
    assert torch.is_grad_enabled()
