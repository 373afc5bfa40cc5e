"""List the scripts behind the published numbers, or run one of them.

python benchmarks/evidence.py             # the list
python benchmarks/evidence.py fold_cost   # runs benchmarks/fold_cost.py with its defaults
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from make_cifar10 import TEST, TRAIN

HERE = Path(__file__).parent
IMAGES = "CIFAR-10"
NEEDS: dict[str, tuple[str, str]] = {
    "accounts": ("minutes", "timm"),
    "block_kinds": ("hours", IMAGES),
    "branch_ablation": ("hours", IMAGES),
    "cifar_fast": ("half an hour", IMAGES),
    "cifar_train": ("hours", f"{IMAGES}; names of nets"),
    "cifar_tradeoff": ("hours", f"{IMAGES}; first --latency, on a quiet machine"),
    "coverage": ("minutes", "timm; other libraries by hand"),
    "coverage_blocks": ("minutes", ""),
    "coverage_latency": ("minutes", "timm"),
    "coverage_report": ("seconds", ""),
    "depth_ablation": ("hours", IMAGES),
    "diff_mutations": ("minutes", ""),
    "diff_optimizers": ("an hour", "timm, onnxsim, onnxslim, onnxoptimizer"),
    "diff_time": ("minutes", "timm"),
    "draw_fold": ("seconds", ""),
    "fold_cost": ("minutes", "timm"),
    "fold_precision": ("minutes", "timm"),
    "fold_time": ("minutes", "timm"),
    "gpu": ("minutes", "a GPU, or --device cpu --tiny"),
    "harness_overhead": ("minutes", ""),
    "int8_cifar": ("hours", f"{IMAGES}; nets of cifar_train"),
    "int8_elsewhere": ("minutes", "an eight-bit file; int8_cifar calls it"),
    "make_cifar10": ("minutes", "a copy of CIFAR-10, or the network"),
    "memory": ("minutes", "Linux"),
    "online": ("hours", "timm; on two threads a machine that does nothing else"),
    "online_curve": ("minutes", IMAGES),
    "onnx_latency": ("minutes", "timm; --files FOLDER; for YOLO: ultralytics"),
    "parallel_convs": ("minutes", "on a machine that does nothing else"),
    "parity": ("minutes", IMAGES),
    "prune_cifar": ("hours", f"{IMAGES}; nets of cifar_train"),
    "readme_tables": ("seconds", ""),
    "tradeoff": ("an hour", "timm, ncnn, pnnx; on a machine that does nothing else"),
    "when": ("seconds", ""),
}
"""About how long each script takes on two cores, and what it needs beside `make test`."""


def scripts() -> dict[str, str]:
    """Every script that a person runs, with the first line of its docstring."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path != Path(__file__) and any(isinstance(node, ast.If) for node in tree.body[-1:]):
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


def main(names: list[str]) -> int:
    known = scripts()
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"{', '.join(unknown)}: no such script; one of {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names:
        result = subprocess.run([sys.executable, HERE / f"{name}.py"], check=False)
        if result.returncode:
            return result.returncode
    if not names:
        for name, what in known.items():
            time, needs = NEEDS[name]
            print(f"{name:20}{time:14}{what}" + (f"\n{'':34}needs {needs}" if needs else ""))
        if not (TRAIN.exists() and TEST.exists()):
            print(
                f"\nCIFAR-10 is not in {TRAIN.parent}: python benchmarks/make_cifar10.py --download"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
