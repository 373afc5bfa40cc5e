"""The memory argument for a single path, counted: blocks of three, two and one branches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import reparam
from reparam.cli.demo.records import memory_record, trace_record
from reparam.deploy.benchmarking import MemoryTrace, peak_activation_memory
from reparam.deploy.benchmarking.memory import predicted_held_maps
from reparam.models import RepVGG, RepVGGSpec
from reparam.report.results import MemoryRecord, TraceRecord

__all__ = ["count_blocks"]

_WIDTH, _SIDE = 64, 56
"""The map of the first stage of a ResNet at 224 pixels."""

_HELD_NOTE = (
    "What is held between two operators when each tensor is released after its last use, as a "
    "graph engine does: the count of the RepVGG paper (arXiv 2101.03697, section 3.1, figure 3). "
    "A block whose branches have maps of the input's size is predicted to hold as many maps as it "
    "has branches. Batch norms of the residual block are folded, as they are when it is deployed."
)
_EAGER_NOTE = (
    "All tensors alive while PyTorch ran each operator, the block's input included, which its "
    "caller holds until the block returns. Counted, and the same on every machine."
)


class _Residual(nn.Module):
    """Two convolutions and a shortcut (He et al., arXiv 1512.03385, figure 5, left)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.body(x) + x)
        return y


def count_blocks() -> tuple[MemoryRecord, ...]:
    """Count the activations of each block over its life, between operators and in eager PyTorch."""
    spec = RepVGGSpec(depths=(2,), widths=(_WIDTH,), stem_width=_WIDTH, stem_stride=1, strides=(1,))
    net = RepVGG(spec, num_classes=2).eval()
    pieces = (
        ("train", "Three branches (RepVGG)", _block(net), 3),
        ("comparator", "Two branches (residual)", reparam.fuse(_Residual(_WIDTH).eval()), 2),
        ("deploy", "Single path", _block(reparam.fuse(net)), 1),
    )
    image = torch.zeros(1, _WIDTH, _SIDE, _SIDE)
    traced = [(*piece, peak_activation_memory(piece[2], image)) for piece in pieces]
    held = memory_record("One block between two operators", "in a block", image, (), _HELD_NOTE)
    eager = memory_record("The same block as PyTorch runs it", "in a block", image, (), _EAGER_NOTE)
    return tuple(
        replace(record, traces=tuple(_trace(*piece, planned=planned) for piece in traced))
        for record, planned in ((held, True), (eager, False))
    )


def _block(net: nn.Module) -> nn.Module:
    return net.get_submodule("stages.0.1")


def _trace(
    role: str, label: str, block: nn.Module, branches: int, trace: MemoryTrace, *, planned: bool
) -> TraceRecord:
    record = trace_record("", label, block, trace, planned=planned)
    predicted = predicted_held_maps(branches) * trace.input_bytes if planned else None
    return replace(record, role=role, predicted_bytes=predicted)
