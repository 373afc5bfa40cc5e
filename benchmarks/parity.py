"""Does a fused net compute in every engine what the net as trained computes in PyTorch?

RepVGG-A0 and MobileOne-S0 of this package, FastViT-T8 and ResNet-18 of timm are fused by reparam
and run in every engine that is installed. What is compared are the logits on real images
(CIFAR-10's test images, enlarged), with the multi-branch net in eager PyTorch as the reference; the
allowed difference is a small multiple of that net's own rounding error, in bfloat16 of its own
error in bfloat16 (see `reparam.deploy.engines.parity`).

No pretrained weights are used: the weights are random, all of the batch norms' affine parameters
and FastViT's layer scales are random too, and the running statistics are calibrated on images.
Agreement of the top class on such nets says that the two compute the same, nothing about accuracy;
classes lie close together, so in bfloat16 the net as trained loses some of its own top classes too,
which is given beside it.

    python benchmarks/parity.py [--images 64] [--engines eager,onnxruntime] [--threads 1]
    python benchmarks/parity.py --engines compile --keep           # add what another run left out
    python benchmarks/parity.py --engines executorch,ncnn,litert,coreml --precisions fp32 \\
        --images 16 --out benchmarks/results/parity_mobile.json    # engines for phones, alone
    python benchmarks/parity.py --tables                           # only write the page's tables
    python benchmarks/parity.py --check                            # is docs/deploy.md up to date?

The tables of docs/deploy.md are written from the results.
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
from make_cifar10 import TEST
from tables import ROOT, fill, markdown
from torch import Tensor, nn
from torch.nn import functional

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking import ParityRow, installed_engines, parity_table
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.deploy.engines import engine_names
from reparam.lab.data import open_data
from reparam.report.benchmarks import engine_label

PAGE = ROOT / "docs" / "deploy.md"
MODELS: dict[str, Callable[[], nn.Module]] = {
    "RepVGG-A0": reparam.models.repvgg_a0,
    "MobileOne-S0": reparam.models.mobileone_s0,
    "FastViT-T8 (timm)": lambda: timm.create_model("fastvit_t8"),
    "ResNet-18 (timm)": lambda: timm.create_model("resnet18"),
}
MOBILE = {"coreml", "executorch", "litert", "ncnn"}
"""Engines for phones, of an extra of their own: a run of them has a table of its own."""
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


def rows_of_others(out: Path, engines: list[str], record: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of other engines that a former run on the same nets and images left."""
    former = json.loads(out.read_text(encoding="utf-8"))
    for key in ("what", "weights", "images"):
        if former[key] != record[key]:
            raise SystemExit(f"{out} is about other {key}: {former[key]!r}, here {record[key]!r}")
    versions = former["environment"]["versions"] | record["environment"]["versions"]
    record["environment"]["versions"] = versions
    return [row for row in former["rows"] if row["engine"] not in engines]


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows net by net, engine by engine, whichever run they are from."""
    nets, engines = list(MODELS), list(engine_names())
    return sorted(rows, key=lambda row: (nets.index(row["model"]), engines.index(row["engine"])))


def page_tables(record: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/deploy.md by their names: one for each precision that was run."""
    ran = [row for row in record["rows"] if row["parity"]]
    kind = "parity-mobile" if {row["engine"] for row in ran} <= MOBILE else "parity"
    return {
        f"{kind}-{p}": page_table(record, p) for p in dict.fromkeys(r["precision"] for r in ran)
    }


def page_table(record: dict[str, Any], precision: str) -> str:
    rows, kept = record["rows"], record.get("top1_kept_by_the_trained_net_in_bf16", {})
    found = {(row["model"], row["engine"]): row for row in rows if row["precision"] == precision}
    engines = [
        name
        for name in engine_names()
        if any(found.get((m, name), {}).get("parity") for m in MODELS)
    ]
    lines = []
    for model in MODELS:
        cells = (found.get((model, engine), {}) for engine in engines)
        known = [row["parity"] for row in found.values() if row["model"] == model and row["parity"]]
        if not known:
            continue
        allowed = f"{known[0]['tolerance']:.1e}"
        own = [f"{kept[model]:.0%}"] if precision == "bf16" else []
        lines.append([model.removesuffix(" (timm)"), *map(page_cell, cells), allowed, *own])
    own = ["the trained net itself"] if precision == "bf16" else []
    labels = [engine_label(e) + (", read back" if e == "coreml" else "") for e in engines]
    return markdown(["net", *labels, "allowed", *own], lines)


def page_cell(row: dict[str, Any]) -> str:
    """The largest error, and the share of equal top classes."""
    parity = row.get("parity")
    if not parity:
        return "-"
    told = f"{parity['max_abs']:.1e}, {parity['top1_agreement']:.0%}"
    return told if parity["ok"] else f"**differs** ({told})"


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
    parser.add_argument("--data", type=Path, default=TEST, help="folder or zip of images")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--engines", help="names with commas; every installed one if left out")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "parity.json")
    parser.add_argument("--keep", action="store_true", help="keep the rows of other engines")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--check", action="store_true", help="only compare the page's tables")
    options = parser.parse_args()
    if options.check or options.tables:
        stored = page_tables(json.loads(options.out.read_text(encoding="utf-8")))
        same = [fill(PAGE, name, text, check=options.check) for name, text in stored.items()]
        return int(options.check and not all(same))
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
    others = rows_of_others(options.out, engines, record) if options.keep else []
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
        if "bf16" in options.precisions:
            controls[name] = own_agreement(reference, x)
        record["top1_kept_by_the_trained_net_in_bf16"] = controls
        record["rows"] = in_order([*others, *(row.as_dict() for row in rows)])
        write_text(options.out, json.dumps(record, indent=1) + "\n")
        print(f"{name} done", flush=True)
    for name, text in page_tables(record).items():
        fill(PAGE, name, text)
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
