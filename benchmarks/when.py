"""The tables of docs/when.md: where re-parameterization pays, from committed results alone.

python benchmarks/when.py            # writes them
python benchmarks/when.py --check    # fails where the page says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from cifar_tradeoff_tables import against
from tables import ROOT, fill, markdown

from reparam.report import load_results
from reparam.report.tradeoff import Duel, Tradeoff, short_label, tradeoffs

PAGE = ROOT / "docs" / "when.md"
RESULTS = ROOT / "benchmarks" / "results"
KINDS = {
    "mobileone_s0": "MobileOne-S0",
    "repvgg_a0": "RepVGG-A0",
    "fastvit_t8": "FastViT-T8",
    "repvit_m0_9": "RepViT-M0.9",
    "repghostnet_050": "RepGhost-0.5x",
    "resnet18": "ResNet-18",
    "mobilenetv3_small_050": "MobileNetV3-S 0.5",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "densenet121": "DenseNet-121",
    "convnext_atto": "ConvNeXt-Atto",
}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def folding() -> str:
    """What folding alone gains, by kind of net and engine."""
    models = read("coverage_latency.json")["models"]
    rows = [
        [
            label,
            f"{models[name]['eager']['ratio']:.2f}",
            f"{models[name]['onnxruntime']['ratio']:.2f}",
        ]
        for name, label in KINDS.items()
        if name in models
    ]
    return markdown(["times faster when folded", "eager PyTorch", "ONNX Runtime"], rows)


def replacing() -> str:
    """The most that a net of equal accuracy gains, by the net that it replaces and engine."""
    compared = one_image()
    others = {other.key: other for _, other in compared.pairs}
    rows = []
    for key, other in sorted(others.items(), key=lambda item: item[1].published_top1 or 0.0):
        cells = []
        for engine in compared.engines:
            met = [duel for duel in compared.duels_in(engine) if duel.other.key == key]
            cells.append(_best(met))
        rows.append([f"{short_label(other)} ({other.published_top1:.1f} %)", *cells])
    return markdown(["your net (published top-1)", *compared.engines], rows)


def _best(met: list[Duel]) -> str:
    if not met:
        return "-"
    duel = max(met, key=lambda each: each.result.factor)
    factor = f"{duel.result.factor:.2f}"
    shown = f"**{factor}**" if duel.result.low >= 2 else factor
    return f"{shown} {short_label(duel.mine)}"


def one_image() -> Tradeoff:
    """The trade-off at one image a call."""
    found = tradeoffs(load_results(RESULTS / "tradeoff.json"))
    return next(each for each in found if each.group.input_shape[0] == 1)


def training() -> str:
    """What both branches gain over a plain net, by depth."""
    summary = read("depth_ablation.json")["summary"]
    rows = []
    for depth, found in summary["gains"].items():
        error = found["standard_error"]
        rows.append(
            [depth, f"{100 * found['gain']:+.2f}", "-" if error is None else f"{100 * error:.2f}"]
        )
    return markdown(["3x3 convolutions", "points gained", "standard error"], rows)


def small_images() -> str:
    """What a re-parameterized net gains over a ResNet that was trained beside it."""
    return against(read("cifar_tradeoff.json"))


TABLES = {
    "folding": folding,
    "replacing": replacing,
    "small": small_images,
    "depth": training,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [name for name, table in TABLES.items() if not fill(PAGE, name, table(), check=check)]
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
