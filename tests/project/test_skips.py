"""A test that is skipped without being listed is a failure where all are wanted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LISTED = tomllib.loads((TESTS / "allowed_skips.toml").read_text(encoding="utf-8"))


def test_the_list_is_short_and_gives_reasons() -> None:
    assert len(LISTED) <= 5
    assert all(LISTED.values())


@pytest.mark.parametrize(
    ("reason", "wanted", "code"),
    [("no such engine", "listed", 1), ("no such engine", "", 0), (next(iter(LISTED)), "listed", 0)],
)
def test_an_unlisted_skip_fails_where_all_tests_are_wanted(
    reason: str, wanted: str, code: int, tmp_path: Path
) -> None:
    for name in ("conftest.py", "allowed_skips.toml"):
        shutil.copy(TESTS / name, tmp_path)
    (tmp_path / "test_one.py").write_text(
        f"import pytest\n\ndef test_one():\n    pytest.skip({reason!r})\n\ndef test_two(): pass\n",
        encoding="utf-8",
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "."],
        cwd=tmp_path,
        env=os.environ | {"REPARAM_SKIPS": wanted, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
