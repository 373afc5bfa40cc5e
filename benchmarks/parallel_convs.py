"""Does it pay to run convolutions of one input as one convolution, and split its result?

    python benchmarks/parallel_convs.py           # measures, and prints the table
    python benchmarks/parallel_convs.py --table   # prints that of the stored samples

The same multiply-adds in fewer calls, exactly: the kernels one below the other. What it costs is
the split, whose parts lie apart in memory. Each case is run both ways in interleaved rounds, one
image on one thread, and what reads the parts is run with them: convolutions of their own, a sum, or
a ``cat``, for which nothing has to be split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tables import markdown
from torch import Tensor, nn

import reparam
from reparam._support.files import write_text
from reparam._support.statistics import quartiles

RESULTS = Path(__file__).with_name("results") / "parallel_convs.json"
ENGINES = ("eager", "onnxruntime", "openvino")
CASES = {
    "1x1, 192 to 64 and 96, 28 px": (192, (64, 96), 1, 28),
    "1x1, 512 to 128 and 128, 14 px": (512, (128, 128), 1, 14),
    "three 1x1, 256 to 256 each, 14 px": (256, (256, 256, 256), 1, 14),
    "3x3, 64 to 64 and 64, 56 px": (64, (64, 64), 3, 56),
    "3x3, 256 to 64 and 64, 14 px": (256, (64, 64), 3, 14),
}
READERS = ("convolutions", "sum", "cat")


class Parallel(nn.Module):
    """Convolutions of one input, apart or as one, and what reads their results."""

    def __init__(self, width: int, widths: tuple[int, ...], kernel: int, reader: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width, out, kernel, padding=kernel // 2) for out in widths
        )
        self.readers = nn.ModuleList(
            nn.Conv2d(out, 32, 1) if reader == "convolutions" else nn.ReLU() for out in widths
        )
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        return self.read([conv(x).relu() for conv in self.convs])

    def read(self, parts: list[Tensor]) -> Tensor:
        """What stands behind the convolutions."""
        if self.reader == "cat":
            return torch.cat(parts, 1)
        y = self.readers[0](parts[0])
        for reader, part in zip(self.readers[1:], parts[1:], strict=True):
            y = y + reader(part)
        return y


class AsOne(Parallel):
    """The same with one convolution."""

    def __init__(self, apart: Parallel) -> None:
        nn.Module.__init__(self)
        self.reader, self.readers = apart.reader, apart.readers
        first = apart.convs[0]
        self.widths = [conv.out_channels for conv in apart.convs]
        self.conv = nn.Conv2d(
            first.in_channels, sum(self.widths), first.kernel_size, padding=first.padding
        )
        with torch.no_grad():
            self.conv.weight.copy_(torch.cat([conv.weight for conv in apart.convs]))
            self.conv.bias.copy_(torch.cat([conv.bias for conv in apart.convs]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return y if self.reader == "cat" else self.read(list(y.split(self.widths, 1)))


def measure(rounds: int) -> dict[str, Any]:
    """Time every case both ways."""
    found: dict[str, Any] = {}
    for name, (width, widths, kernel, side) in CASES.items():
        for reader in READERS:
            if reader == "sum" and len(set(widths)) > 1:
                continue
            torch.manual_seed(0)
            apart = Parallel(width, widths, kernel, reader).eval()
            one, x = AsOne(apart).eval(), torch.randn(1, width, side, side)
            reparam.verify(apart, one, x).raise_if_different()
            result = reparam.benchmark(
                {"apart": apart, "as one": one}, x, engines=ENGINES, threads=(1,), rounds=rounds
            )
            samples = {
                engine: [result[way, engine].rounds for way in ("apart", "as one")]
                for engine in ENGINES
            }
            found[f"{name}; read by {reader}"] = samples
            print(f"{name}, {reader}: done", flush=True)
    return {"cases": found, "environment": result.environment}


def table(record: dict[str, Any]) -> str:
    """How many times as fast one convolution is, with the quartiles over the rounds."""
    rows = []
    for name, samples in record["cases"].items():
        ratios = (
            quartiles([a / b for a, b in zip(*samples[engine], strict=True)]) for engine in ENGINES
        )
        rows.append([name, *(f"{q.median:.2f} ({q.q1:.2f} to {q.q3:.2f})" for q in ratios)])
    return markdown(["times as fast as one", *ENGINES], rows)


def main() -> None:
    """Measure, write the samples, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--table", action="store_true", help="print the table of what is stored")
    options = parser.parse_args()
    if not options.table:
        write_text(RESULTS, json.dumps(measure(options.rounds), indent=1, default=str) + "\n")
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
