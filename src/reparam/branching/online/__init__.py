"""Wide training nets at the price of narrow ones: branches merged while they are trained."""

from __future__ import annotations

from reparam.branching.online.plan import OnlinePlan, online, online_mode, online_plan
from reparam.branching.online.table import OnlineBlock, OnlineRefusal

__all__ = [
    "OnlineBlock",
    "OnlinePlan",
    "OnlineRefusal",
    "online",
    "online_mode",
    "online_plan",
]
