"""Real small runs of quantizing and pruning, made once, and invented records for rare outcomes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

import reparam
from reparam.lab.pruning.result import ChannelGroup, Kept, LatencyChange, LayerWidths
from reparam.report.compressed import PruningRecord, QuantizationRecord
from reparam.report.results import Results

if TYPE_CHECKING:
    from pathlib import Path

    from reparam.lab.pruning import PruneResult
    from reparam.lab.quantizing import QuantizeResult

SPEC = reparam.models.RepVGGSpec(
    depths=(1, 2), widths=(16, 32), stem_width=16, stem_stride=1, strides=2
)


def fused() -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A fused net that has seen some images, with images and labels to judge it on."""
    torch.manual_seed(0)
    net = reparam.models.RepVGG(SPEC, num_classes=5)
    images, labels = torch.randn(96, 3, 16, 16), torch.randint(0, 5, (96,))
    net(images)
    return reparam.fuse(net.eval()), images, labels


def quantized(folder: Path, **options: Any) -> QuantizeResult:
    net, images, labels = fused()
    batches = [(images[:48], labels[:48]), (images[48:], labels[48:])]
    return reparam.quantize(net, folder / "net.onnx", batches, **options)


def pruned(**options: Any) -> PruneResult:
    net, images, labels = fused()
    settings = {"macs": 0.5, "multiple": 4, "data": (images, labels)} | options
    return reparam.prune(net, images[:1], **settings)


QUANTIZATION = QuantizationRecord(
    model="Invented net",
    engine="OpenVINO",
    format="OpenVINO IR",
    file="net.xml",
    judged_on="500 test images of nothing",
    samples=500,
    output_db=28.0,
    float_bytes=4_000_000,
    size_bytes=1_000_000,
    quantized=("a", "b"),
    correct_float=400,
    correct=390,
    agree=470,
    bias_corrected=True,
    calibration="300 samples: 300 training images of nothing",
)
"""Invented: two points lost of 500 samples, nothing tried but corrected biases."""

PRUNING = PruningRecord(
    model="Invented net",
    target="0.5 of the latency",
    importance="first_order",
    multiply_adds_before=1_000_000,
    multiply_adds_after=400_000,
    parameters_before=200_000,
    parameters_after=100_000,
    layers=(
        LayerWidths("a", "3x3 conv", (3, 32), (3, 16)),
        LayerWidths("b", "3x3 conv", (32, 32), (16, 16)),
        LayerWidths("head", "linear", (32, 10), (16, 10)),
    ),
    groups=(ChannelGroup(("a", "b"), 32, 16),),
    kept=(Kept("head", "it <writes> the outputs of the net"),),
    latency=LatencyChange("onnxruntime", 1, 1, 2e-3, 1.2e-3, 0.6, (0.55, 0.65)),
    latency_share=0.5,
    samples=500,
    correct_before=400,
    correct_after=350,
)
"""Invented: a latency target that is missed, ten points lost, two layers tied."""


def quantization_page(record: QuantizationRecord = QUANTIZATION, **changes: Any) -> Results:
    changed = dataclasses.replace(record, **changes)
    return Results(title="Invented", created="", models=(), quantizations=(changed,))


def pruning_page(record: PruningRecord = PRUNING, **changes: Any) -> Results:
    changed = dataclasses.replace(record, **changes)
    return Results(title="Invented", created="", models=(), prunings=(changed,))
