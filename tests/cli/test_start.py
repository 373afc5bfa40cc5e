"""The command line starts without what only a command needs, and lists what it has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reparam.cli.app import COMMANDS

HEAVY = ["torch", "onnx", "lightning", "timm", "numpy", "jinja2"]
IMPORTS = f"""
import sys
from reparam.cli import main
code = main({{arguments}})
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["--version"], 0), (["no-such-command"], 2)]
)
def test_nothing_heavy_is_imported_before_a_command_is_known(arguments, code):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(arguments=arguments)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_is_there(name, reparam_command):
    result = reparam_command(name, "--help")
    assert result.code == 0
    assert f"reparam {name}" in result.out
