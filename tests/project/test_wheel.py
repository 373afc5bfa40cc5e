"""What is shipped: a wheel of the package and its data alone, which works with torch alone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from extras import EXTRAS_ONLY

ROOT = Path(__file__).parents[2]

FOLDS_A_NET = """
import sys
sys.modules.update(dict.fromkeys({others}))  # to the import system: not installed
import torch, reparam
assert reparam.__file__.startswith({folder!r}), reparam.__file__
net = reparam.models.repvgg_a0(num_classes=10).eval()
fused = reparam.fuse(net)
reparam.verify(net, fused, torch.randn(1, 3, 32, 32)).raise_if_different()
assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_the_package_and_its_data_alone(wheel):
    with zipfile.ZipFile(wheel) as packed:
        shipped = {name for name in packed.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == files
    assert "reparam/py.typed" in shipped


def test_the_wheel_folds_and_verifies_with_torch_alone(wheel, tmp_path):
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, wheel)
    program = FOLDS_A_NET.format(others=EXTRAS_ONLY, folder=str(tmp_path))
    run("-c", program, env={"PYTHONPATH": str(tmp_path)})


def run(*arguments, env=None):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=300, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
