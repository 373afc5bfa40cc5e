"""Blocks of publications, reimplemented in the tests: operators before and after fusing.

    python benchmarks/coverage_blocks.py

Writes benchmarks/results/coverage_blocks.json, of which `benchmarks/coverage_report.py` makes a
table in docs/coverage.md.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from coverage_report import BLOCKS

import reparam
from reparam._support.files import write_text

# The tests' own blocks and counters; they trust nothing of the library.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from checking import worst_error
from counting import Tally
from zoo import CASES, ZooCase

TYPES = {"float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def measure(case: ZooCase) -> dict[str, Any]:
    """Fuse one block in several types; errors are over the largest activation."""
    found: dict[str, Any] = {"errors": {}}
    for name, dtype in TYPES.items():
        model = case.module().to(dtype)
        fused = reparam.fuse(model, case.inputs().to(dtype), probe=case.probe)
        # Both run in float64, so that what is seen is what became of the weights.
        error, before, after = worst_error(model.double(), fused.double(), case.other_inputs())
        found["errors"][name] = error
        found["before"], found["after"] = _operators(before), _operators(after)
    return found


def _operators(tally: Tally) -> dict[str, int]:
    layers = {"convs": tally.convs + tally.linears, "norms": tally.norms}
    return {**layers, "operators": sum(layers.values()) + tally.others.total()}


def main() -> None:
    """Measure all blocks."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = {case.name: measure(case) for case in CASES if not case.pending}
    write_text(BLOCKS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
