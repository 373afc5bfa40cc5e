"""Latency of exported ONNX files: as exported, simplified by other tools, and fused by reparam.

Each net is exported with its branches, and the file is simplified by onnxsim and by OnnxSlim, where
these are installed, and fused by ``reparam.fusing.fuse_onnx_file``. All files of a net then take
turns in ONNX Runtime and OpenVINO, with the engines' own optimisations on, so that what is compared
is what a user gets. Weights are random; batch norms have statistics of their own, so no tool can
drop them.

    python benchmarks/onnx_latency.py [--models repvgg_a0,mobileone_s0] [--rounds 15] [--threads 2]

The results go to benchmarks/results/onnx_latency.json net by net; what is in that file is not
measured again (``--again`` does). The YOLO needs ``pip install ultralytics``.
"""

from __future__ import annotations

import argparse
import copy
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
from torch import nn

import reparam
from reparam._files import write_text
from reparam.benchmarking.environment import describe_environment
from reparam.fusing import fuse_onnx_file

RESULTS = Path(__file__).with_name("results") / "onnx_latency.json"
ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Net:
    """A net to measure, and the side of its square input."""

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
    "repvgg_a0": Net(reparam.models.repvgg_a0),
    "mobileone_s0": Net(reparam.models.mobileone_s0),
    "fastvit_t8": Net(from_timm("fastvit_t8"), 256),
    "repvit_m0_9": Net(from_timm("repvit_m0_9")),
    "yolov9t": Net(yolo, 320),
}


def unequal_norms(net: nn.Module) -> nn.Module:
    """Give batch norms random numbers, so that none is the identity, and statistics that fit."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
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


def measure(name: str, rounds: int, threads: int | None) -> dict[str, object]:
    """Export, rewrite and time one net."""
    net = NETS[name]
    torch.manual_seed(0)
    x = torch.randn(1, 3, net.size, net.size)
    with tempfile.TemporaryDirectory() as folder:
        files = {"as exported": Path(folder) / "net.onnx"}
        export(unequal_norms(net.build()), x, files["as exported"])
        seconds: dict[str, float] = {}
        for way, rewrite in WAYS.items():
            if way != "reparam" and importlib.util.find_spec(way) is None:
                continue
            out, start = Path(folder) / f"{way}.onnx", time.perf_counter()
            rewrite(files["as exported"], out)
            seconds[way] = time.perf_counter() - start
            files[way] = out
        operations = {
            way: dict(Counter(n.op_type for n in onnx.load(path).graph.node).most_common())
            for way, path in files.items()
        }
        result = reparam.benchmark(files, x, engines=ENGINES, rounds=rounds, threads=(threads,))
    return {
        "size": net.size,
        "operations": operations,
        "rewrite_seconds": seconds,
        "latency": [
            {
                "file": m.case.model,
                "engine": m.case.engine,
                "median_ms": 1e3 * m.latency.median,
                "rounds_ms": [1e3 * value for value in m.rounds],
            }
            for m in result.measurements
        ],
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=",".join(NETS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    options = parser.parse_args()
    found = (
        json.loads(options.out.read_text(encoding="utf-8"))
        if options.out.exists()
        else {"nets": {}}
    )
    for name in options.models.split(","):
        if name == "yolov9t" and importlib.util.find_spec("ultralytics") is None:
            print(f"{name}: left out, ultralytics is not installed")
            continue
        if options.again or name not in found["nets"]:
            found["nets"][name] = measure(name, options.rounds, options.threads)
            found["environment"] = describe_environment()
            write_text(options.out, json.dumps(found, indent=1) + "\n")
        tell(name, found["nets"][name])


if __name__ == "__main__":
    main()
