"""Gradient re-parameterization: a plain net trained as if it had branches."""

from __future__ import annotations

from reparam.branching.rep_optimizer.csla import (
    ScaledBranches,
    read_scales,
    scaled_branches,
    search_scales,
)
from reparam.branching.rep_optimizer.optimizer import RepOptimizer
from reparam.branching.rep_optimizer.scales import (
    BranchScales,
    default_scales,
    initialize_,
    pack_scales,
    unpack_scales,
)

__all__ = [
    "BranchScales",
    "RepOptimizer",
    "ScaledBranches",
    "default_scales",
    "initialize_",
    "pack_scales",
    "read_scales",
    "scaled_branches",
    "search_scales",
    "unpack_scales",
]
