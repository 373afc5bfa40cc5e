"""The memory argument for a single path, counted: blocks of three, two and one branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from reparam.deploy.benchmarking import MemoryTrace, peak_activation_memory
from reparam.deploy.benchmarking.memory import predicted_held_maps
from reparam.models import RepVGG, RepVGGSpec
from reparam.report.results import MemoryRecord, TraceRecord

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


_OPERATORS = {
    "_native_batch_norm_legit_no_training": "BN",
    "add": "add",
    "add_": "add",
    "relu": "ReLU",
    "relu_": "ReLU",
}


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


@dataclass(frozen=True, eq=False)
class Piece:
    """A block whose activations were followed, as a part of one of the models or of none."""

    label: str
    block: nn.Module
    trace: MemoryTrace
    model: str = ""
    role: str = ""
    branches: int = 0

    @classmethod
    def of(cls, label: str, block: nn.Module, image: Tensor, **about: Any) -> Piece:
        """Follow the activations of a block on an input."""
        return cls(label, block, peak_activation_memory(block, image), **about)

    def record(self, *, planned: bool) -> TraceRecord:
        """The life of the block's activations, see :func:`memory_record`."""
        steps = [step for step in self.trace.steps if step.op != "empty"]
        live = [(s.planned_held if planned else s.working).total for s in steps]
        predicted = predicted_held_maps(self.branches) * self.trace.input_bytes
        return TraceRecord(
            model=self.model,
            label=self.label,
            operators=tuple(self._operator(step.op, step.module) for step in steps),
            live_bytes=tuple(live),
            peak_bytes=max(live),
            role=self.role,
            predicted_bytes=predicted if planned and self.branches else None,
        )

    def _operator(self, op: str, module: str) -> str:
        if op == "convolution":
            return layer_name(self.block.get_submodule(module))
        return _OPERATORS.get(op, op)


def layer_name(layer: nn.Module) -> str:
    """What a layer is called in a drawing."""
    if isinstance(layer, nn.Conv2d):
        return "conv " + "×".join(str(side) for side in layer.kernel_size)
    return "BN" if isinstance(layer, nn.BatchNorm2d) else type(layer).__name__


def memory_record(
    title: str, image: Tensor, pieces: Sequence[Piece], note: str, *, planned: bool
) -> MemoryRecord:
    """Pieces that ran on the same input.

    With `planned` the paper's count is taken: what is held between two operators when each tensor
    goes after its last use. Without, what was alive while eager PyTorch ran each operator.
    """
    return MemoryRecord(
        title=title,
        scope="in a block",
        input_shape=tuple(image.shape),
        input_bytes=image.untyped_storage().nbytes(),
        traces=tuple(piece.record(planned=planned) for piece in pieces),
        note=note,
    )


def count_blocks() -> tuple[MemoryRecord, MemoryRecord]:
    """Count the activations of each block over its life, between operators and in eager PyTorch."""
    spec = RepVGGSpec(depths=(2,), widths=(_WIDTH,), stem_width=_WIDTH, stem_stride=1, strides=(1,))
    net = RepVGG(spec, num_classes=2).eval()
    image, one, two = torch.zeros(1, _WIDTH, _SIDE, _SIDE), "stages.0.1", _Residual(_WIDTH).eval()
    blocks = (
        ("train", "Three branches (RepVGG)", net.get_submodule(one), 3),
        ("comparator", "Two branches (residual)", reparam.fuse(two), 2),
        ("deploy", "Single path", reparam.fuse(net).get_submodule(one), 1),
    )
    pieces = [Piece.of(label, b, image, role=role, branches=n) for role, label, b, n in blocks]
    return (
        memory_record("One block between two operators", image, pieces, _HELD_NOTE, planned=True),
        memory_record(
            "The same block as PyTorch runs it", image, pieces, _EAGER_NOTE, planned=False
        ),
    )
