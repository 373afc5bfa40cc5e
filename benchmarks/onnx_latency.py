"""Latency of exported ONNX files: as exported, simplified by other tools, and fused by reparam.

Each net is exported with its branches, and the file is simplified by onnxsim and by OnnxSlim, where
these are installed, and fused by ``reparam.fusing.fuse_onnx_file``. All files of a net then take
turns in ONNX Runtime and OpenVINO, with the engines' own optimisations on, so that what is compared
is what a user gets. Weights are random; batch norms have random numbers and the statistics of their
inputs, so that no tool can drop them.

    python benchmarks/onnx_latency.py --files /tmp/nets --write-only  # export, simplify, fuse
    python benchmarks/onnx_latency.py --files /tmp/nets --threads 2   # and measure
    python benchmarks/onnx_latency.py --check                         # is the page up to date?

The results go to benchmarks/results/onnx_latency.json net by net; what is in that file is not
measured again (``--again`` does). The table of docs/onnx.md is written from it. The YOLO needs
``pip install ultralytics``, whose licence is the AGPL; this package neither needs nor ships it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import json
import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from tables import fill, markdown
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.fusing import fuse_onnx_file
from reparam.fusing.onnx_compare import compare_onnx_files

RESULTS = Path(__file__).with_name("results") / "onnx_latency.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "onnx.md"
ENGINES = ("onnxruntime", "openvino")
LABELS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FILES = {
    "as exported": "as exported",
    "onnxsim": "onnxsim",
    "onnxslim": "OnnxSlim",
    "reparam": "fused by reparam",
}


@dataclass(frozen=True)
class Net:
    """A net to measure, its name for people, and the side of its square input."""

    label: str
    build: Callable[[], nn.Module]
    size: int = 224


def from_timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name)

    return build


def yolo() -> nn.Module:
    """The tiny YOLOv9, whose blocks are RepConv; its head returns the raw maps."""
    from ultralytics import YOLO

    model = YOLO("yolov9t.yaml").model
    model.model[-1].export = True
    return model


NETS = {
    "repvgg_a0": Net("RepVGG-A0", reparam.models.repvgg_a0),
    "mobileone_s0": Net("MobileOne-S0", reparam.models.mobileone_s0),
    "fastvit_t8": Net("FastViT-T8", from_timm("fastvit_t8"), 256),
    "repvit_m0_9": Net("RepViT-M0.9", from_timm("repvit_m0_9")),
    "yolov9t": Net("YOLOv9-T, 320 px", yolo, 320),
}


@torch.no_grad()
def unequal_norms(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Give batch norms and layer scales random numbers, and statistics that fit the inputs."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = None  # the plain average
    for name, parameter in net.named_parameters():
        if "layer_scale" in name or name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    net.train()(x)
    return net.eval()


def export(net: nn.Module, x: torch.Tensor, path: Path) -> None:
    """Write the net with its branches, for one shape."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (x,), path, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False, opset_version=17,
        )  # fmt: skip


def with_onnxsim(source: Path, out: Path) -> None:
    import onnxsim

    model, ok = onnxsim.simplify(onnx.load(source))
    if not ok:
        raise RuntimeError("onnxsim's own check failed")
    onnx.save(model, out)


def with_onnxslim(source: Path, out: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(copy.deepcopy(onnx.load(source))), out)


def with_reparam(source: Path, out: Path) -> None:
    fuse_onnx_file(source, out)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "onnxsim": with_onnxsim,
    "onnxslim": with_onnxslim,
    "reparam": with_reparam,
}


def write_files(name: str, folder: Path) -> dict[str, Path]:
    """Export one net and rewrite the file in every way; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    net, files = NETS[name], {"as exported": folder / "net.onnx"}
    record = folder / "seconds.json"
    seconds = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    torch.manual_seed(0)
    if not files["as exported"].exists():
        x = torch.randn(4, 3, net.size, net.size)
        export(unequal_norms(net.build(), x), x[:1], files["as exported"])
    for way, rewrite in WAYS.items():
        if way != "reparam" and importlib.util.find_spec(way) is None:
            continue
        files[way] = folder / f"{way}.onnx"
        if not files[way].exists():
            start = time.perf_counter()
            rewrite(files["as exported"], files[way])
            seconds[way] = time.perf_counter() - start
            write_text(record, json.dumps(seconds))
    return files


def measure(name: str, folder: Path, rounds: int, threads: int | None) -> dict[str, object]:
    """Time one net's files by turns, and compare each with the one that was exported."""
    size = NETS[name].size
    files = write_files(name, folder)
    exported = files["as exported"]
    model = onnx.load(exported)
    verdicts = {
        way: compare_onnx_files(exported, path, model) for way, path in files.items() if way in WAYS
    }
    torch.manual_seed(0)
    x = torch.randn(1, 3, size, size)
    result = reparam.benchmark(files, x, engines=ENGINES, rounds=rounds, threads=(threads,))
    return {
        "size": size,
        "threads": threads,
        "operations": {
            way: dict(Counter(n.op_type for n in onnx.load(path).graph.node).most_common())
            for way, path in files.items()
        },
        "rewrite_seconds": json.loads((folder / "seconds.json").read_text(encoding="utf-8")),
        "largest_relative_difference": {way: v.max_rel for way, v in verdicts.items()},
        "latency": [
            {
                "file": m.case.model,
                "engine": m.case.engine,
                "median_ms": 1e3 * m.latency.median,
                "quartiles_ms": [1e3 * m.latency.q1, 1e3 * m.latency.q3],
                "rounds_ms": [1e3 * value for value in m.rounds],
            }
            for m in result.measurements
        ],
    }


def page_table(nets: dict[str, dict]) -> str:
    """The table of docs/onnx.md: per net and engine the latency of each file."""
    rows = []
    for name, entry in nets.items():
        for engine in ENGINES:
            times = {r["file"]: r["median_ms"] for r in entry["latency"] if r["engine"] == engine}
            base, ours = times["as exported"], times["reparam"]
            convs = [entry["operations"][way].get("Conv", 0) for way in ("as exported", "reparam")]
            rows.append(
                [
                    NETS[name].label,
                    LABELS[engine],
                    f"{convs[0]} → {convs[1]}",
                    *(f"{times[way]:.1f} ms" if way in times else "-" for way in FILES),
                    f"**{base / ours:.2f}×**",
                ]
            )
    header = ["net", "engine", "convolutions", *FILES.values(), "exported / fused"]
    return markdown(header, rows)


def tell(name: str, entry: dict) -> None:
    """Print one net's rows: convolutions, and the median latency in each engine."""
    print(f"\n{name}, 1x3x{entry['size']}x{entry['size']}")
    base = {r["engine"]: r["median_ms"] for r in entry["latency"] if r["file"] == "as exported"}
    for way, operations in entry["operations"].items():
        cells = [
            f"{r['engine']} {r['median_ms']:8.2f} ms ({base[r['engine']] / r['median_ms']:.2f}x)"
            for r in entry["latency"]
            if r["file"] == way
        ]
        print(f"  {way:12s} {operations.get('Conv', 0):4d} convs  " + "  ".join(cells))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(NETS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--files", type=Path, help="keep the files here, and take those there are")
    parser.add_argument("--write-only", action="store_true", help="write the files, measure later")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--check", action="store_true", help="only compare the page's table")
    options = parser.parse_args()
    found = (
        json.loads(options.out.read_text(encoding="utf-8"))
        if options.out.exists()
        else {"nets": {}}
    )
    if options.check:
        return int(not fill(PAGE, "onnx-latency", page_table(found["nets"]), check=True))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.files or Path(temporary)
        for name in options.models.split(","):
            if name == "yolov9t" and importlib.util.find_spec("ultralytics") is None:
                print(f"{name}: left out, ultralytics is not installed")
            elif options.write_only:
                write_files(name, folder / name)
            elif options.again or name not in found["nets"]:
                found["nets"][name] = measure(name, folder / name, options.rounds, options.threads)
                found["environment"] = environment()
                write_text(options.out, json.dumps(found, indent=1) + "\n")
    for name, entry in found["nets"].items():
        tell(name, entry)
    if found["nets"]:
        fill(PAGE, "onnx-latency", page_table(found["nets"]))
    return 0


def environment() -> dict:
    """The machine, with the versions of the other tools."""
    described = describe_environment()
    for tool in ("onnx", "onnxsim", "onnxslim", "timm", "ultralytics"):
        if importlib.util.find_spec(tool) is not None:
            described["versions"][tool] = importlib.metadata.version(tool)
    return described


if __name__ == "__main__":
    raise SystemExit(main())
