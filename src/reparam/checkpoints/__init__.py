"""Checkpoints of other projects, read safely and put under the right names.

One public function, :func:`load_checkpoint`; :func:`read_weights` is its first half, for those who
want the named tensors alone.
"""

from __future__ import annotations

from reparam.checkpoints.files import Weights, read_weights
from reparam.checkpoints.loading import LoadReport, load_checkpoint
from reparam.checkpoints.matching import Mismatch

__all__ = ["LoadReport", "Mismatch", "Weights", "load_checkpoint", "read_weights"]
