"""Names of files that are no text in the encoding of the system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import reparam

pytest.importorskip("typer")
pytest.importorskip("onnxruntime")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
@pytest.mark.parametrize("stem", [b"n\xc3\xa9t", b"net\xff"], ids=["accented", "no text"])
def test_names_that_are_no_text_here_are_one_line(stem: bytes, tiny: str, folder: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    source = str(Path(reparam.__file__).parents[1])
    environment = os.environ | plain | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}

    before = sorted(os.fsencode(path) for path in folder.iterdir())

    def run(*words: str | bytes) -> subprocess.CompletedProcess[bytes]:
        line = [word.encode() if isinstance(word, str) else word for word in words]
        return subprocess.run(
            [os.fsencode(sys.executable), b"-B", b"-m", b"reparam", *line],
            capture_output=True,
            check=False,
            cwd=folder,
            env=environment,
        )

    for ran in (
        run("fuse", f"{tiny}:net", "--input-size", "8", "-o", stem + b".onnx"),
        run("plan", stem + b".onnx"),
    ):
        assert ran.returncode == 2
        assert ran.stderr.count(b"\n") == 1
    assert sorted(os.fsencode(path) for path in folder.iterdir()) == before
