"""The part of the story that takes a clock: latency and activation memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

import reparam
from reparam._support.optional import require
from reparam.cli.bench.blocks import Piece, memory_record
from reparam.cli.demo.story import DEPLOY, RESNET, TRAIN, Forms, step
from reparam.cli.telling import counted
from reparam.models import mobileone_s1
from reparam.report import sentence
from reparam.report.benchmarks import from_benchmark
from reparam.report.published import published
from reparam.report.results import LatencyRecord, ModelRecord, Results
from reparam.report.timing import against_others

if TYPE_CHECKING:
    from reparam.cli.demo.nets import Settings
    from reparam.cli.terminal import Terminal

_UNTRAINED = "untrained weights, for speed only"
_EAGER_NOTE = (
    "Bytes of all tensors alive while PyTorch ran each operator, the block's input included: every "
    "storage was followed from the operator that made it to its release."
)
_HELD_NOTE = (
    "The count of the RepVGG paper (section 3.1, figure 3): the same operators, and what is held "
    "between two of them when each tensor is released after its last use, as a graph engine does."
)


def measure(results: Results, forms: Forms, settings: Settings, terminal: Terminal) -> Results:
    """Time the nets, then MobileOne-S1 beside ResNet-50, and count the memory of a block."""
    results = _time_demo_nets(results, forms, settings, terminal)
    if settings.reference_size:
        results = _time_reference_nets(results, settings, terminal)
    return _count_memory(results, forms, settings, terminal)


def _time_demo_nets(
    results: Results, forms: Forms, settings: Settings, terminal: Terminal
) -> Results:
    nets = {TRAIN: forms.train, DEPLOY: forms.deploy, RESNET: forms.resnet}
    groups = []
    for batch in (settings.batch, 1):
        title = f"The trained nets, {'one image' if batch == 1 else f'{batch} images'} a call"
        images = _images(batch, settings.image_size)
        group, environment = _timed(nets, images, settings, terminal, title)
        groups.append(group)
    results = replace(results, latency=tuple(groups), environment=environment)
    told = (sentence("duel", duel) for duel in against_others(results, groups[0])[:2])
    terminal.done(f"Timed the nets. {' '.join(told)}")
    return results


def _images(batch: int, side: int) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def _timed(
    models: Mapping[str, nn.Module],
    images: torch.Tensor,
    settings: Settings,
    terminal: Terminal,
    title: str,
) -> tuple[LatencyRecord, dict[str, str]]:
    """Time nets side by side, as one record, and say what they ran on."""
    with step(terminal, f"Timing: {title[0].lower()}{title[1:]}") as update:
        found = reparam.benchmark(
            models, images, engines=("eager", "onnxruntime"), rounds=settings.rounds,
            progress=update,
        )  # fmt: skip
    read = from_benchmark(found)
    return replace(read.benchmarks[0], title=title, note=""), read.environment


def _time_reference_nets(results: Results, settings: Settings, terminal: Terminal) -> Results:
    """MobileOne-S1 and ResNet-50, of about equal published accuracy, at the size of that."""
    models = require("torchvision.models", extra="train", purpose="Building ResNet-50")
    torch.manual_seed(settings.seed)
    image = _images(1, settings.reference_size)
    train_form = mobileone_s1().eval()
    resnet = reparam.fuse(models.resnet50(weights=None).eval(), image)
    named = (
        ("s1-train", "MobileOne-S1, train form", "train", train_form),
        ("s1-deploy", "MobileOne-S1, deploy form", "deploy", reparam.fuse(train_form, image)),
        ("resnet50", "ResNet-50", "comparator", resnet),
    )
    title = f"MobileOne-S1 and ResNet-50, one image of {settings.reference_size} pixels a call"
    nets = {key: net for key, _, _, net in named}
    group, _ = _timed(nets, image, settings, terminal, title)
    medians = {
        row.model: f"{statistics.median(row.samples_ms):.0f} ms"
        for row in group.rows
        if row.engine == "eager"
    }
    terminal.done(
        f"Timed MobileOne-S1 (untrained): {medians['s1-train']} in train form, "
        f"{medians['s1-deploy']} in deploy form; ResNet-50 {medians['resnet50']}"
    )
    listed = tuple(
        ModelRecord(key, label, role, note=_UNTRAINED, **counted(net, image))
        for key, label, role, net in named
    )
    group = replace(group, note=_about_accuracy())
    return replace(results, latency=(*results.latency, group), models=(*results.models, *listed))


def _about_accuracy() -> str:
    """What was published of the two nets, whose weights are random here."""
    told = [
        f"{known.label} {known.top1:.1f} % ({known.recipe}; {known.source})"
        for known in map(published, ("mobileone_s1", "torchvision:resnet50"))
        if known is not None
    ]
    return (
        "The weights are untrained: this is about speed only. Published ImageNet accuracies: "
        f"{', '.join(told)}."
    )


def _count_memory(
    results: Results, forms: Forms, settings: Settings, terminal: Terminal
) -> Results:
    """Follow the activations of one block of each kind on the same input."""
    image = torch.zeros(1, settings.widths[0], settings.image_size, settings.image_size)
    blocks = (
        (TRAIN, "RepVGG block, train form", forms.train.get_submodule("stages.0.1")),
        (RESNET, "Residual block", forms.resnet.get_submodule("1.0")),
        (DEPLOY, "RepVGG block, deploy form", forms.deploy.get_submodule("stages.0.1")),
    )
    with step(terminal, "Counting the activations of a block"):
        pieces = [Piece.of(label, block, image, model=key) for key, label, block in blocks]
    held = "The same block between two operators"
    eager = memory_record("One block as PyTorch runs it", image, pieces, _EAGER_NOTE, planned=False)
    peaks = ", ".join(
        f"{trace.label.lower()} {trace.peak_bytes / eager.input_bytes:.3g}x"
        for trace in eager.traces
    )
    terminal.done(f"Peak activations of a block, in units of its input: {peaks}")
    return replace(
        results, memory=(eager, memory_record(held, image, pieces, _HELD_NOTE, planned=True))
    )
