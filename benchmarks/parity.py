"""Does a fused net compute in every engine what the net as trained computes in PyTorch?

RepVGG-A0 and MobileOne-S0 of this package, FastViT-T8 and ResNet-18 of timm are fused by reparam
and run in every engine that is installed. What is compared are the logits on real images
(CIFAR-10's test images, enlarged), with the multi-branch net in eager PyTorch as the reference; the
allowed difference is a small multiple of that net's own rounding error, in bfloat16 of its own
error in bfloat16 (see `reparam.engines.parity`).

No pretrained weights are used: the weights are random, all of the batch norms' affine parameters
and FastViT's layer scales are random too, and the running statistics are calibrated on images.
Agreement of the top class on such nets says that the two compute the same, nothing about accuracy;
classes lie close together, so in bfloat16 the net as trained loses some of its own top classes too,
which is given beside it.

    python benchmarks/parity.py [--images 64] [--engines eager,onnxruntime] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import reparam
from reparam._files import write_text
from reparam.benchmarking import ParityRow, installed_engines, parity_table
from reparam.benchmarking.environment import describe_environment
from reparam.data import open_data
from reparam.report.benchmarks import engine_label

ROOT = Path(__file__).resolve().parents[1]
MODELS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG-A0": reparam.models.repvgg_a0,
    "MobileOne-S0": reparam.models.mobileone_s0,
    "FastViT-T8 (timm)": lambda: timm.create_model("fastvit_t8"),
    "ResNet-18 (timm)": lambda: timm.create_model("resnet18"),
}
SIZE = 224
CALIBRATION = 16
WEIGHTS = (
    "random weights, norms and layer scales; running statistics calibrated on "
    f"{CALIBRATION} images; nothing pretrained"
)


def images(path: Path, count: int) -> tuple[Tensor, Tensor, str]:
    """Return images to calibrate on, others to compare on, and what they are."""
    if not path.exists():
        x = torch.randn(count + CALIBRATION, 3, SIZE, SIZE)
        return x[:CALIBRATION], x[CALIBRATION:], "random normal values (no CIFAR-10 at hand)"
    data = open_data(path)
    x, _ = data.tensors(data.validation)
    # The images are stored class by class: take them from all over, in a fixed random order.
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x = functional.interpolate(
        x[chosen[: count + CALIBRATION]], size=(SIZE, SIZE), mode="bilinear", align_corners=False
    )
    return x[:CALIBRATION], x[CALIBRATION:], f"CIFAR-10 test images, enlarged to {SIZE} pixels"


@torch.no_grad()
def own_agreement(net: nn.Module, x: Tensor) -> float:
    """Share of the images whose top class the net keeps when it runs in bfloat16 itself."""
    half = copy.deepcopy(net).to(torch.bfloat16)(x.to(torch.bfloat16))
    return float((net(x).argmax(1) == half.argmax(1)).double().mean())


def trained_form(make: Callable[[], nn.Module], calibration: Tensor) -> nn.Module:
    """A net whose output depends on everything in it: random affine parts, true statistics."""
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.2)
                module.momentum = None  # the plain average over the calibration images
        for name, parameter in net.named_parameters():
            if "layer_scale" in name or name.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
        net.train()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        net(calibration)
    return net.eval()


def shown(row: ParityRow) -> list[str]:
    found = row.parity
    if found is None:
        return [row.model, engine_label(row.engine, row.precision), "-", "-", "-", "cannot run it"]
    return [
        row.model,
        engine_label(row.engine, row.precision),
        f"{found.max_abs:.1e}",
        f"{found.tolerance:.1e}",
        "-" if found.top1_agreement is None else f"{found.top1_agreement:.1%}",
        "agrees" if found.ok else "DIFFERS",
    ]


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = ROOT.parent / "shared" / "data" / "cifar10-test.zip"
    parser.add_argument("--data", type=Path, default=data, help="folder or zip of images")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--engines", help="names with commas; every installed one if left out")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "parity.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    calibration, x, what = images(options.data, options.images)
    engines = options.engines.split(",") if options.engines else installed_engines()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    head = ["model", "engine", "largest error", "allowed", "top-1 equal", "verdict"]
    rows: list[ParityRow] = []
    controls: dict[str, float] = {}
    record: dict[str, Any] = {
        "what": "logits of the fused net in each engine against the net as trained in PyTorch",
        "weights": WEIGHTS,
        "images": f"{len(x)} {what}",
        "environment": describe_environment() | {"threads": options.threads},
    }
    for name, make in MODELS.items():
        reference = trained_form(make, calibration)
        fused = reparam.fuse(reference, x[:1])
        rows += parity_table(
            {name: fused},
            x,
            references={name: reference},
            engines=engines,
            precisions=options.precisions.split(","),
        )
        controls[name] = own_agreement(reference, x)
        record["top1_kept_by_the_trained_net_in_bf16"] = controls
        record["rows"] = [row.as_dict() for row in rows]
        write_text(options.out, json.dumps(record, indent=1) + "\n")
        print(f"{name} done", flush=True)
    print(f"\n{record['images']}; {WEIGHTS}\n")
    print(table([head, *(shown(row) for row in rows)]))
    for name, kept in controls.items():
        print(f"{name} as trained, run in bf16, keeps {kept:.1%} of its own top classes")
    for label, why in {(engine_label(r.engine, r.precision), r.why): 0 for r in rows if r.why}:
        print(f"{label}: {why}")
    # An engine that does not know a precision is no disagreement; one that fails in float32 is.
    return int(any(not row.ok and (row.parity or row.precision == "fp32") for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
