"""Whether two networks are the same function: by proof, or else by an input that shows it."""

from __future__ import annotations

from reparam.diffing.comparing import diff
from reparam.diffing.difference import Difference

__all__ = ["Difference", "diff"]
