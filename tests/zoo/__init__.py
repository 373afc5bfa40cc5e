"""Training-time blocks reimplemented from their papers, and the table of what each must fold to."""

from __future__ import annotations

from ._common import randomise
from ._table import CASES, ZooCase

__all__ = ["CASES", "ZooCase", "randomise"]
