"""Structured channel pruning of fused nets: fewer channels, physically smaller convolutions."""

from __future__ import annotations

from reparam.lab.pruning.importance import CRITERIA
from reparam.lab.pruning.pruner import prune
from reparam.lab.pruning.reloading import load_pruned, resize
from reparam.lab.pruning.result import (
    ChannelGroup,
    Kept,
    LatencyChange,
    LayerWidths,
    PruneResult,
    Trial,
)
from reparam.lab.pruning.targets import LatencyTarget, MacsTarget

__all__ = [
    "CRITERIA",
    "ChannelGroup",
    "Kept",
    "LatencyChange",
    "LatencyTarget",
    "LayerWidths",
    "MacsTarget",
    "PruneResult",
    "Trial",
    "load_pruned",
    "prune",
    "resize",
]
