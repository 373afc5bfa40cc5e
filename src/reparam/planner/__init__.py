"""Which pieces of a program fold, what that saves, and why the rest does not."""

from __future__ import annotations

from reparam.planner.candidates import Candidate, Cost
from reparam.planner.select import Selection, Veto, select

__all__ = ["Candidate", "Cost", "Selection", "Veto", "select"]
