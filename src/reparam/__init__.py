"""Structural re-parameterization for PyTorch: train wide, deploy straight.

``plan`` reads a trained multi-branch network, ``fuse`` writes an equal one with the fewest
convolutions, ``verify`` shows that the two are equal, ``operator`` is the equivalent kernel of a
block, ``branch`` goes the other way, ``online`` trains many branches at the price of one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from reparam._support.version import __version__ as __version__

if TYPE_CHECKING:
    from reparam import models
    from reparam.algebra import AffineConv
    from reparam.branching import branch
    from reparam.branching.online import online, online_mode, online_plan
    from reparam.branching.rep_optimizer import RepOptimizer
    from reparam.checkpoints import load_checkpoint
    from reparam.deploy.benchmarking import benchmark, pick
    from reparam.deploy.exporting import export, load_fused, read_metadata
    from reparam.diffing import Difference, diff
    from reparam.errors import ReparamError, TrainingModeError
    from reparam.fusing import FoldWarning, Plan, Region, fuse, operator, plan
    from reparam.lab.pruning import PruneResult, prune
    from reparam.lab.quantizing import quantize
    from reparam.lab.training import train
    from reparam.reasons import Reason, Refusal, Why
    from reparam.verifying import Verdict, verify

__all__ = [
    "AffineConv",
    "Difference",
    "FoldWarning",
    "Plan",
    "PruneResult",
    "Reason",
    "Refusal",
    "Region",
    "RepOptimizer",
    "ReparamError",
    "TrainingModeError",
    "Verdict",
    "Why",
    "benchmark",
    "branch",
    "diff",
    "export",
    "fuse",
    "load_checkpoint",
    "load_fused",
    "models",
    "online",
    "online_mode",
    "online_plan",
    "operator",
    "pick",
    "plan",
    "prune",
    "quantize",
    "read_metadata",
    "train",
    "verify",
]

_HOMES = {
    "AffineConv": "reparam.algebra",
    "Difference": "reparam.diffing",
    "FoldWarning": "reparam.fusing",
    "Plan": "reparam.fusing",
    "PruneResult": "reparam.lab.pruning",
    "Reason": "reparam.reasons",
    "Refusal": "reparam.reasons",
    "Region": "reparam.fusing",
    "RepOptimizer": "reparam.branching.rep_optimizer",
    "ReparamError": "reparam.errors",
    "TrainingModeError": "reparam.errors",
    "Verdict": "reparam.verifying",
    "Why": "reparam.reasons",
    "benchmark": "reparam.deploy.benchmarking",
    "branch": "reparam.branching",
    "diff": "reparam.diffing",
    "export": "reparam.deploy.exporting",
    "fuse": "reparam.fusing",
    "load_checkpoint": "reparam.checkpoints",
    "load_fused": "reparam.deploy.exporting",
    "online": "reparam.branching.online",
    "online_mode": "reparam.branching.online",
    "online_plan": "reparam.branching.online",
    "operator": "reparam.fusing",
    "pick": "reparam.deploy.benchmarking",
    "plan": "reparam.fusing",
    "quantize": "reparam.lab.quantizing",
    "prune": "reparam.lab.pruning",
    "read_metadata": "reparam.deploy.exporting",
    "train": "reparam.lab.training",
    "verify": "reparam.verifying",
}


def __getattr__(name: str) -> object:
    """Import public names when they are first used, so that importing the package is light."""
    if name == "models":
        return importlib.import_module("reparam.models")
    if name not in _HOMES:
        msg = f"module 'reparam' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
