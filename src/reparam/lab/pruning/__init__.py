"""Structured channel pruning of fused nets: fewer channels, physically smaller convolutions."""

from __future__ import annotations

from reparam.lab.pruning.importance import CRITERIA
from reparam.lab.pruning.pruner import prune
from reparam.lab.pruning.reloading import load_pruned, resize
from reparam.lab.pruning.result import ChannelGroup, Kept, LayerWidths, PruneResult
from reparam.lab.pruning.targets import LatencyChange, LatencyTarget, MacsTarget, Trial

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
