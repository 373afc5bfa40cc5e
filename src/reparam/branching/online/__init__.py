"""Wide training nets at the price of narrow ones: branches merged while they are trained."""

from __future__ import annotations

from reparam.branching.online.plan import (
    OnlineBlock,
    OnlinePlan,
    OnlineRefusal,
    online,
    online_mode,
    online_plan,
)

__all__ = [
    "OnlineBlock",
    "OnlinePlan",
    "OnlineRefusal",
    "online",
    "online_mode",
    "online_plan",
]
