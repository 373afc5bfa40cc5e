"""The part of the story that takes a clock: latency and activation memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

import reparam
from reparam._support.optional import require
from reparam.cli.demo import records
from reparam.deploy.benchmarking import BenchmarkResult, peak_activation_memory
from reparam.models import mobileone_s1
from reparam.report import sentence
from reparam.report.benchmarks import environment_record
from reparam.report.published import published
from reparam.report.results import MemoryRecord, ModelRecord, Results, TraceRecord
from reparam.report.timing import against_others

if TYPE_CHECKING:
    from reparam.cli.demo.reporter import Reporter
    from reparam.cli.demo.settings import Settings

__all__ = ["measure"]

Nets = tuple[nn.Module, nn.Module, nn.Module]
"""Train form, deploy form, ResNet."""

_KEYS = ("train", "deploy", "resnet")
_ENGINES = tuple(records.ENGINES)
_UNTRAINED = "untrained weights, for speed only"
_EAGER_NOTE = (
    "Bytes of all tensors alive while PyTorch ran each operator, the block's input included: every "
    "storage was followed from the operator that made it to its release."
)
_HELD_NOTE = (
    "The count of the RepVGG paper (section 3.1, figure 3): the same operators, and what is held "
    "between two of them when each tensor is released after its last use, as a graph engine does."
)


def measure(results: Results, nets: Nets, settings: Settings, reporter: Reporter) -> Results:
    """Time the nets, then MobileOne-S1 beside ResNet-50, and count the memory of a block."""
    results = _time_demo_nets(results, nets, settings, reporter)
    if settings.reference_size:
        results = _time_reference_nets(results, settings, reporter)
    return _count_memory(results, nets, settings, reporter)


def _time_demo_nets(
    results: Results, nets: Nets, settings: Settings, reporter: Reporter
) -> Results:
    side = settings.image_size
    groups = []
    named = dict(zip(_KEYS, nets, strict=True))
    for batch in (settings.batch, 1):
        title = f"The trained nets, {'one image' if batch == 1 else f'{batch} images'} a call"
        images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
        result = _timed(named, images, settings, reporter, title)
        groups.append(
            records.latency_record(title, result, {k: k for k in _KEYS}, torch.get_num_threads())
        )
    environment = environment_record(result.environment)
    results = replace(results, latency=tuple(groups), environment=environment)
    told = (sentence("duel", duel) for duel in against_others(results, groups[0])[:2])
    reporter.outcome(f"Timed the nets. {' '.join(told)}")
    return results


def _timed(
    models: Mapping[str, nn.Module],
    images: torch.Tensor,
    settings: Settings,
    reporter: Reporter,
    title: str,
) -> BenchmarkResult:
    with reporter.step(f"Timing: {title[0].lower()}{title[1:]}") as update:
        return reparam.benchmark(
            models, images, engines=_ENGINES, rounds=settings.rounds, progress=update
        )


def _time_reference_nets(results: Results, settings: Settings, reporter: Reporter) -> Results:
    """MobileOne-S1 and ResNet-50, of about equal published accuracy, at the size of that."""
    models = require("torchvision.models", extra="train", purpose="Building ResNet-50")
    torch.manual_seed(settings.seed)
    side = settings.reference_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    train_form = mobileone_s1().eval()
    nets = {
        "s1-train": train_form,
        "s1-deploy": reparam.fuse(train_form, image),
        "resnet50": reparam.fuse(models.resnet50(weights=None).eval(), image),
    }
    title = f"MobileOne-S1 and ResNet-50, one image of {side} pixels a call"
    result = _timed(nets, image, settings, reporter, title)
    group = records.latency_record(
        title,
        result,
        {key: key for key in nets},
        torch.get_num_threads(),
        _about_accuracy(),
    )
    labels = ("MobileOne-S1, train form", "MobileOne-S1, deploy form", "ResNet-50")
    roles = ("train", "deploy", "comparator")
    listed: list[ModelRecord] = [
        records.model_record(key, label, role, net, image, _UNTRAINED)
        for (key, net), label, role in zip(nets.items(), labels, roles, strict=True)
    ]
    medians = {name: result[name, "eager"].latency.median for name in nets}
    reporter.outcome(
        f"Timed MobileOne-S1 (untrained): {1e3 * medians['s1-train']:.0f} ms in train form, "
        f"{1e3 * medians['s1-deploy']:.0f} ms in deploy form; "
        f"ResNet-50 {1e3 * medians['resnet50']:.0f} ms"
    )
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


def _count_memory(results: Results, nets: Nets, settings: Settings, reporter: Reporter) -> Results:
    """Follow the activations of one block of each kind on the same input."""
    train_form, deploy_form, resnet = nets
    pieces = (
        ("train", "RepVGG block, train form", train_form.get_submodule("stages.0.1")),
        ("resnet", "Residual block", resnet.get_submodule("1.0")),
        ("deploy", "RepVGG block, deploy form", deploy_form.get_submodule("stages.0.1")),
    )
    side, width = settings.image_size, settings.widths[0]
    image = torch.zeros(1, width, side, side)
    with reporter.step("Counting the activations of a block"):
        traced = [(key, name, b, peak_activation_memory(b, image)) for key, name, b in pieces]

    def figure(title: str, scope: str, note: str, *, planned: bool) -> MemoryRecord:
        traces: list[TraceRecord] = [
            records.trace_record(key, name, block, trace, planned=planned)
            for key, name, block, trace in traced
        ]
        return records.memory_record(title, scope, image, traces, note)

    memory = (
        figure("One block as PyTorch runs it", "in a block", _EAGER_NOTE, planned=False),
        figure("The same block between two operators", "in a block", _HELD_NOTE, planned=True),
    )
    peaks = ", ".join(
        f"{trace.label.lower()} {trace.peak_bytes / memory[0].input_bytes:.3g}x"
        for trace in memory[0].traces
    )
    reporter.outcome(f"Peak activations of a block, in units of its input: {peaks}")
    return replace(results, memory=memory)
