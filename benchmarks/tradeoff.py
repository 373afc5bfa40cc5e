"""Accuracy against latency on this machine: RepVGG and ResNets in deploy form, engine by engine.

The picture of RepVGG's first figure with latencies measured here (`reparam bench --figure1`), its
page, and the answer to one question for each engine: is a single path faster than the net with
shortcuts that it equals in published accuracy, and does it take half the time?

    python benchmarks/tradeoff.py [--seconds 480] [--threads 2] [--engines eager,openvino]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reparam.cli import main as reparam_command

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="time for all of it")
    parser.add_argument("--threads", help="CPU threads of a call; each engine's default if left")
    parser.add_argument("--engines", help="names with commas; the usual ones if left out")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "tradeoff.json"
    )
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    line = ["bench", "--figure1", "--seconds", str(options.seconds), "-o", str(options.out)]
    line += ["--precisions", options.precisions]
    for name in ("threads", "engines"):
        if getattr(options, name) is not None:
            line += [f"--{name}", getattr(options, name)]
    return reparam_command(line)


if __name__ == "__main__":
    sys.exit(main())
