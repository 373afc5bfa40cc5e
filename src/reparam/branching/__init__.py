"""The way back: plain convolutions become multi-branch blocks with the same function."""

from __future__ import annotations

from reparam.branching.block import BranchSum
from reparam.branching.kinds import BranchKind, kinds, mobileone, register_kind
from reparam.branching.layout import ConvLayout
from reparam.branching.plan import BranchPlan, BranchRegion, branch, plan_branching
from reparam.branching.select import BranchRefusal

__all__ = [
    "BranchKind",
    "BranchPlan",
    "BranchRefusal",
    "BranchRegion",
    "BranchSum",
    "ConvLayout",
    "branch",
    "kinds",
    "mobileone",
    "plan_branching",
    "register_kind",
]
