"""Peak activation memory of blocks and whole nets: counted, and as the process sees it.

RepVGG-A0, ResNet-18, ResNet-50 and MobileOne-S1 in train and in deploy form, at batch 1 and 16, one
inference of 224 pixels in eager PyTorch; and the blocks of figure 3 of the RepVGG paper, counted.

    python benchmarks/memory.py           # measures, writes the table and the picture
    python benchmarks/memory.py --tables  # only writes them
    python benchmarks/memory.py --check   # are they up to date?

Three peaks: *held*, of what waits between two operators when each tensor goes after its last use
(the paper's count); *eager*, of all tensors alive as PyTorch runs it; *process*, the largest
resident size during a call over that before it, in a process of its own whose allocator gives every
large block back. The last counts what the kernels of an operator need for themselves, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from plots import COLOURS, Panel, Point, Series, save
from tables import ROOT, fill, markdown

import reparam
from reparam._support.files import write_text
from reparam.cli.bench.blocks import count_blocks
from reparam.cli.targets import load_model
from reparam.deploy.benchmarking import peak_activation_memory
from reparam.deploy.benchmarking.environment import describe_environment

RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
PAGE = ROOT / "docs" / "deploy.md"
PICTURE = ROOT / "docs" / "images" / "memory.svg"
NETS = {
    "repvgg_a0": "RepVGG-A0",
    "mobileone_s1": "MobileOne-S1",
    "torchvision:resnet18": "ResNet-18",
    "torchvision:resnet50": "ResNet-50",
}
FORMS, BATCHES = ("train", "deploy"), (1, 16)
CALLS = 5
KINDS = {"held_bytes": "held", "eager_bytes": "eager", "process_bytes": "process"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--check", action="store_true", help="only compare the page's table")
    parser.add_argument("--net", choices=NETS, help="measure one net and print it")
    options = parser.parse_args()
    if options.net is not None:
        print(json.dumps(measure(options.net)))
        return 0
    if not (options.tables or options.check):
        measure_all()
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    tables = {"block-memory": block_table(content["blocks"]), "net-memory": table(content["rows"])}
    same = [fill(PAGE, name, text, check=options.check) for name, text in tables.items()]
    same.append(draw(content["rows"], check=options.check))
    return int(options.check and not all(same))


def measure_all() -> None:
    """Measure every net in a process of its own, which maps and unmaps each large block."""
    rows: list[dict[str, Any]] = []
    for net in NETS:
        line = [sys.executable, __file__, "--net", net]
        told = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(
            line, env=os.environ | told, check=True, stdout=subprocess.PIPE, text=True
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    content = {
        "environment": describe_environment(),
        "calls": CALLS,
        "rows": rows,
        "blocks": [asdict(record) for record in count_blocks()],
    }
    write_text(RESULTS, json.dumps(content, indent=1) + "\n")


@torch.inference_mode()
def measure(net: str) -> list[dict[str, Any]]:
    """Count one net in both forms and at both batches, and watch the process run it."""
    torch.set_num_threads(1)
    train = load_model(net).model
    rows = []
    for form, model in (("train", train), ("deploy", reparam.fuse(train))):
        for batch in BATCHES:
            images = torch.randn(batch, 3, 224, 224)
            counted = peak_activation_memory(model, images)
            rows.append(
                {
                    "net": net,
                    "form": form,
                    "batch": batch,
                    "input_bytes": counted.input_bytes,
                    "held_bytes": counted.planned_peak_held,
                    "eager_bytes": counted.peak,
                    "process_samples": [resident_peak(model, images) for _ in range(CALLS)],
                }
            )
    return rows


def resident_peak(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Return by how many bytes the process grew, at most, during a call; the input included."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _status("VmRSS")
    model(images)
    return _status("VmHWM") - before + images.numel() * images.element_size()


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None, f"this system does not tell {key}"
    return 1024 * int(found[1])


def with_process(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the process's peak: the median of the calls after the first."""
    later = sorted(row["process_samples"][1:])
    return row | {"process_bytes": later[len(later) // 2]}


def block_table(records: list[dict[str, Any]]) -> str:
    """Counted and predicted peaks of blocks, in units of the block's input."""
    held, eager = records
    peaks = {
        trace["label"]: trace["peak_bytes"] / eager["input_bytes"] for trace in eager["traces"]
    }
    rows = [
        [
            trace["label"],
            f"{trace['peak_bytes'] / 2**20:.2f} MiB",
            f"{trace['peak_bytes'] / held['input_bytes']:g}×",
            f"{trace['predicted_bytes'] / held['input_bytes']:g}×",
            f"{peaks[trace['label']]:g}×",
        ]
        for trace in held["traces"]
    ]
    return markdown(["block", "held, counted", "in inputs", "predicted", "eager PyTorch"], rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Peaks in MiB an image, and how many times more the train form needs."""
    found = {(row["net"], row["form"], row["batch"]): with_process(row) for row in rows}
    lines = []
    for batch in BATCHES:
        for net, label in NETS.items():
            cells = []
            for kind in KINDS:
                train, deploy = (found[net, form, batch][kind] / 2**20 for form in FORMS)
                cells.append(f"{train:.1f} → {deploy:.1f} ({train / deploy:.2f}×)")
            lines.append([label, batch, *cells])
    header = ["train → deploy form, MiB", "batch", *KINDS.values()]
    return markdown(header, lines)


def draw(rows: list[dict[str, Any]], *, check: bool) -> bool:
    """One mark for each net, form and count, at batch 16."""
    found = {(row["net"], row["form"]): with_process(row) for row in rows if row["batch"] == 16}
    panels = []
    for kind, title in (("held_bytes", "counted, held"), ("process_bytes", "the process")):
        series = tuple(
            Series(
                f"{form} form",
                colour,
                tuple(
                    Point(index, found[net, form][kind] / 2**20)
                    for index, net in enumerate(NETS, start=1)
                ),
                line=False,
            )
            for form, colour in zip(FORMS, COLOURS, strict=False)
        )
        names = tuple(NETS.values())
        panels.append(Panel(title, "", "MiB, 16 images", series, y_from_zero=True, x_names=names))
    told = "Peak activation memory of nets in train and deploy form, 16 images"
    return save(PICTURE, panels, told, columns=1, height=260, check=check)


if __name__ == "__main__":
    sys.exit(main())
