"""Structured channel pruning of fused nets: fewer channels, physically smaller convolutions."""

from __future__ import annotations

from reparam.pruning.importance import CRITERIA
from reparam.pruning.pruner import prune
from reparam.pruning.reloading import load_pruned, resize
from reparam.pruning.result import (
    ChannelGroup,
    Kept,
    LatencyChange,
    LayerWidths,
    PruneResult,
    Trial,
)
from reparam.pruning.targets import LatencyTarget, MacsTarget

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
