"""Whether two networks are the same function: by proof, or else by an input that shows it."""

from __future__ import annotations

from reparam.diffing.comparing import diff
from reparam.diffing.difference import Difference
from reparam.diffing.matching import ROUNDINGS

__all__ = ["BOUND", "Difference", "diff"]

BOUND = f"{ROUNDINGS} roundings of the coarser stored type, of each number without cancellation"
"""What rounding of stored weights explains, in words."""
