"""The list of benchmarks is whole, and their data can be made by anyone."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_script_is_listed():
    done = script("evidence.py")
    names = [line.split()[0] for line in done.splitlines() if line and not line.startswith(" ")]
    scripts = {p.stem for p in BENCHMARKS.glob("*.py") if "__main__" in p.read_text()}
    assert scripts - {"evidence"} <= set(names)


def test_cifar_zips_are_made_from_a_folder_of_images(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), "teal").save(folder / "first.png")
    script("make_cifar10.py", "--folder", tmp_path, "--out", tmp_path / "zips")
    with zipfile.ZipFile(tmp_path / "zips" / "cifar10-test.zip") as packed:
        assert packed.namelist() == ["test/cat/0000.jpg", "test/dog/0000.jpg"]


def script(name, *arguments):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
