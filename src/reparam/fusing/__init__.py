"""Multi-branch form to single path: the public transformation of the package."""

from __future__ import annotations

from reparam.fusing.operator import operator
from reparam.fusing.plan import FoldWarning, Plan, Refusal, Region, fuse, plan

__all__ = ["FoldWarning", "Plan", "Refusal", "Region", "fuse", "operator", "plan"]
